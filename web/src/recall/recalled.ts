/** What a picture's file tells of how it was made, in our words; what it does not tell is absent. */
import { isPng, pngText } from "./png";
import { fromA1111 } from "./a1111";

export interface Recalled {
  model?: string;
  prompt?: string;
  negative_prompt?: string;
  width?: number;
  height?: number;
  steps?: number;
  cfg_scale?: number;
  seed?: number;
  control_strength?: number;
}

export interface Found {
  /** who wrote it: "Darkroom", "AUTOMATIC1111" */
  by: string;
  recalled: Recalled;
  /** what was told and has no field here, as it stood: sampler, model hash */
  beyond: [name: string, value: string][];
}

/** The parameters in a file; null where there are none. */
export async function found(file: Blob): Promise<Found | null> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!isPng(bytes)) return null;
  const text = await pngText(bytes);
  return fromOurs(text.get("darkroom")) ?? fromA1111(text.get("parameters"));
}

const OURS: { [K in keyof Recalled]-?: "string" | "number" } = {
  model: "string", prompt: "string", negative_prompt: "string", width: "number", height: "number", steps: "number", cfg_scale: "number", seed: "number", control_strength: "number",
};

/** Any object with our parameters in it: a job's, a picture's, a request's body. Fields of a form are text, numbers too;
 *  what has another type is left out. */
export function recalledOf(parameters: object): Recalled {
  const given = parameters as Record<string, unknown>;
  const told = Object.entries(OURS).map(([name, type]) => [name, type === "number" ? numbered(given[name]) : given[name], type] as const);
  return Object.fromEntries(told.filter(([, value, type]) => typeof value === type)) as Recalled;
}

function numbered(value: unknown): unknown {
  const number = typeof value === "string" && value.trim() ? Number(value) : Number.NaN;
  return Number.isFinite(number) ? number : value;
}

export function fromOurs(json: string | undefined): Found | null {
  if (!json) return null;
  try {
    const given: unknown = JSON.parse(json);
    if (!given || typeof given !== "object") return null;
    const { versions, loras } = given as { versions?: { darkroom?: string }; loras?: { name: string; scale: number }[] };
    const beyond: [string, string][] = [];
    if (loras?.length) beyond.push(["LoRAs", loras.map((lora) => `${lora.name} at ${lora.scale}`).join(", ")]);
    if (versions?.darkroom) beyond.push(["Version", versions.darkroom]);
    return { by: "Darkroom", recalled: recalledOf(given), beyond };
  } catch {
    return null;
  }
}
