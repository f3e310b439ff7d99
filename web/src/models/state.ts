/** Where a model stands, in a word or two. */
import type { ModelState } from "~/api/console-types";

export interface Standing {
  text: string;
  tone: "good" | "warm" | "bad" | "plain";
}

export function stateOf(model: ModelState): Standing {
  if (model.loaded && model.preparing) return { text: "loaded, getting ready (first time only)", tone: "good" };
  if (model.loaded) return { text: "loaded", tone: "good" };
  if (model.loading) return { text: "loading", tone: "warm" };
  if (model.pull && !model.pull.error) return { text: "downloading", tone: "warm" };
  if (model.pull?.error && !model.installed) return stopped(model) ? { text: "download stopped", tone: "plain" } : { text: "download failed", tone: "bad" };
  if (!model.installed) return { text: "not here", tone: "plain" };
  if (!model.license.accepted) return { text: "licence to accept", tone: "warm" };
  return { text: model.served ? "ready to load" : "not served", tone: "plain" };
}

/** Cancelled by a person, as the server says it. */
export function stopped(model: Pick<ModelState, "pull">): boolean {
  return model.pull?.error === "stopped";
}

/** Something goes on that is worth looking at again soon. */
export function moving(models: ModelState[]): boolean {
  return models.some((one) => one.loading || one.preparing || (one.pull !== null && !one.pull.error));
}
