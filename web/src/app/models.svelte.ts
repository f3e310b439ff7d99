/** The models of the service that is looked at: limits, defaults, hints. */
import type { Model } from "~/api/types";
import { models } from "~/api/v1";

/** What was told last time stands until the server answers, so that a page does not jump when it does. */
const KEPT = "darkroom.models";

class Models {
  private of = "";
  all = $state<Model[]>([]);
  failure = $state<unknown>();
  ready = $state(false);

  async load(service: string) {
    if (this.of !== service) Object.assign(this, { of: service, all: kept(service), ready: false });
    this.failure = undefined;
    try {
      const found = await models(service);
      if (this.of !== service) return;
      Object.assign(this, { all: found, ready: true });
      localStorage.setItem(KEPT, JSON.stringify({ service, found }));
    } catch (error) {
      this.failure = error;
    }
  }

  named(id: string): Model | undefined {
    return this.all.find((one) => one.id === id);
  }
}

function kept(service: string): Model[] {
  try {
    const last = JSON.parse(localStorage.getItem(KEPT) ?? "null") as { service: string; found: Model[] } | null;
    return last?.service === service && Array.isArray(last.found) ? last.found : [];
  } catch {
    return [];
  }
}

export const served = new Models();
