/** What would change in the form if a picture's parameters were taken over. */
import type { Recalled } from "./recalled";

export type FieldName = keyof Recalled;

/** What the form must know of a model to judge a value. */
export interface Bounds {
  models: string[];
  steps: [number, number];
  max_side: number;
}

export interface Change {
  field: FieldName;
  label: string;
  before: string;
  after: string;
  /** the value that will be put in: the one told, or the nearest that the form takes */
  value: string | number;
  /** why the value is not the one told, or cannot be taken */
  note?: string;
  /** it cannot be taken: another tool's model, say */
  barred?: true;
}

export const LABELS: Record<FieldName, string> = {
  prompt: "Prompt", negative_prompt: "Negative prompt", model: "Model", width: "Width", height: "Height", steps: "Steps", cfg_scale: "CFG scale", seed: "Seed", control_strength: "Strength",
};

/** The fields that differ, in the form's order. */
export function difference(form: Recalled, told: Recalled, bounds: Bounds): Change[] {
  return (Object.keys(LABELS) as FieldName[]).flatMap((field) => {
    const value = told[field];
    if (value === undefined || value === form[field]) return [];
    const change = { field, label: LABELS[field], before: shown(field, form[field]), after: shown(field, value) };
    const fit = fitted(field, value, bounds);
    if (fit.value === form[field]) return [];
    return [{ ...change, ...fit, after: fit.barred ? change.after : shown(field, fit.value) }];
  });
}

/** The fields that are told and already so. */
export function alike(form: Recalled, told: Recalled): string[] {
  return (Object.keys(LABELS) as FieldName[]).filter((field) => told[field] !== undefined && told[field] === form[field]).map((field) => LABELS[field]);
}

type Fit = Pick<Change, "value" | "note" | "barred">;

function fitted(field: FieldName, value: string | number, bounds: Bounds): Fit {
  if (field === "model" && !bounds.models.includes(String(value))) return { value, note: "this service has no such model", barred: true };
  if (typeof value === "string") return { value };
  switch (field) {
    case "width":
    case "height":
      return near(value, Math.min(bounds.max_side, Math.max(128, Math.round(value / 64) * 64)));
    case "steps":
      return near(value, Math.min(bounds.steps[1], Math.max(bounds.steps[0], Math.round(value))));
    case "cfg_scale":
      return near(value, Math.min(35, Math.max(0, value)));
    case "control_strength":
      return near(value, Math.min(1, Math.max(0, value)));
    case "seed":
      return Number.isInteger(value) && value >= 1 && value <= 4294967295 ? { value } : { value, note: "seeds go from 1 to 4294967295 here", barred: true };
  }
  return { value };
}

function near(told: number, value: number): Fit {
  return told === value ? { value } : { value, note: `the file says ${told}; this is the nearest that the model takes` };
}

function shown(field: FieldName, value: string | number | undefined): string {
  if (value === undefined || value === "") return "–";
  return field === "control_strength" ? `keeps ${Math.round(Number(value) * 100)} %` : String(value);
}
