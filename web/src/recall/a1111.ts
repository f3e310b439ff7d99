/** The text chunk `parameters` that AUTOMATIC1111's web UI introduced and most tools write:
 *
 *      the prompt, of any number of lines
 *      Negative prompt: of any number of lines too
 *      Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: "with, comma", Denoising strength: 0.65
 *
 *  Values with a comma, colon or line break in them are JSON strings. */
import type { Found, Recalled } from "./recalled";

const NEGATIVE = "Negative prompt:";
const PAIR = /\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)/g;
/** A last line with fewer pairs than that is still prompt. */
const LEAST_PAIRS = 3;

export function fromA1111(text: string | undefined): Found | null {
  if (!text?.trim()) return null;
  const lines = text.trim().split("\n");
  const last = pairsOf(lines.at(-1) ?? "");
  const pairs = last.size >= LEAST_PAIRS ? last : new Map<string, string>();
  if (pairs.size) lines.pop();
  const at = lines.findIndex((line) => line.trimStart().startsWith(NEGATIVE));
  const prompt = (at < 0 ? lines : lines.slice(0, at)).join("\n").trim();
  const negative = at < 0 ? "" : lines.slice(at).join("\n").trimStart().slice(NEGATIVE.length).trim();
  if (!pairs.size && at < 0 && !looksWritten(text)) return null;
  const recalled: Recalled = { ...(prompt && { prompt }), ...(pairs.size || negative ? { negative_prompt: negative } : {}), ...numbersOf(pairs) };
  return { by: pairs.get("Version")?.startsWith("darkroom") ? "Darkroom" : "AUTOMATIC1111", recalled, beyond: [...pairs].filter(([name]) => !TAKEN.has(name)) };
}

const TAKEN = new Set(["Steps", "CFG scale", "Seed", "Size", "Model", "Denoising strength"]);

function pairsOf(line: string): Map<string, string> {
  return new Map([...line.matchAll(PAIR)].map(([, name, value]) => [name!.trim(), unquoted(value!.trim())]));
}

function unquoted(value: string): string {
  if (!value.startsWith('"')) return value;
  try {
    return String(JSON.parse(value));
  } catch {
    return value;
  }
}

/** Some tools put JSON of their own under the same keyword; that is not this text. */
function looksWritten(text: string): boolean {
  return !text.trim().startsWith("{");
}

function numbersOf(pairs: Map<string, string>): Recalled {
  const number = (name: string) => {
    const value = Number(pairs.get(name) ?? NaN);
    return Number.isFinite(value) ? value : undefined;
  };
  const size = /^(\d+)x(\d+)$/.exec(pairs.get("Size") ?? "");
  const denoise = number("Denoising strength");
  const told: Recalled = {
    steps: number("Steps"),
    cfg_scale: number("CFG scale"),
    // -1 stands for a random one there
    seed: (number("Seed") ?? -1) >= 0 ? number("Seed") : undefined,
    width: size ? Number(size[1]) : undefined,
    height: size ? Number(size[2]) : undefined,
    model: pairs.get("Model") || undefined,
    // theirs counts what is redrawn, ours what is kept; rounding takes off what binary fractions add
    control_strength: denoise === undefined ? undefined : Math.round((1 - denoise) * 10000) / 10000,
  };
  return Object.fromEntries(Object.entries(told).filter(([, value]) => value !== undefined)) as Recalled;
}
