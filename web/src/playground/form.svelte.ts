/** The Playground's form. One for the whole app, since pictures anywhere can be taken over into it; kept over a reload. */
import type { Ask, Model } from "~/api/types";
import type { Recalled } from "~/recall/recalled";
import { keepImage, keptImage } from "./kept";

const KEPT = "darkroom.form";
export const MAX_SEED = 4294967295;

interface Fields {
  prompt: string;
  negative_prompt: string;
  model: string;
  width: number;
  height: number;
  steps: number;
  cfg_scale: number;
  seed: number;
  /** keep the seed for the next pictures */
  locked: boolean;
  count: number;
  control_strength: number;
  /** image to image: take the size of the picture given */
  own_size: boolean;
}

/** The picture to begin from. */
export interface Start {
  blob: Blob;
  name: string;
  width: number;
  height: number;
}

const FIRST: Fields = {
  prompt: "", negative_prompt: "", model: "", width: 512, height: 512, steps: 30, cfg_scale: 7, seed: randomSeed(), locked: false, count: 1, control_strength: 0.35, own_size: true,
};

export function randomSeed(): number {
  // eight pictures take the seeds that follow, so the last seven are left out; 0 would mean "draw one"
  return 1 + Math.floor(Math.random() * (MAX_SEED - 8));
}

class Form {
  fields = $state<Fields>({ ...FIRST, ...kept() });
  start = $state<Start | null>(null);
  startUrl = $state("");

  constructor() {
    $effect.root(() => {
      $effect(() => localStorage.setItem(KEPT, JSON.stringify(this.fields)));
    });
    void keptImage().then((start) => start && !this.start && this.show(start));
  }

  /** What the fields hold, in the words of a request: what a difference is shown against. */
  get recalled(): Recalled {
    const { prompt, negative_prompt, model, width, height, steps, cfg_scale, seed, control_strength } = this.fields;
    return { prompt, negative_prompt, model, width, height, steps, cfg_scale, seed, ...(this.start ? { control_strength } : {}) };
  }

  /** A request's body. The seed stands as it is: draw before. */
  get ask(): Ask {
    const { own_size, width, height, control_strength } = this.fields;
    const { prompt, negative_prompt, model, steps, cfg_scale, seed, count } = this.fields;
    const ask: Ask = { model, prompt, steps, cfg_scale, seed, ...(negative_prompt.trim() ? { negative_prompt } : {}), ...(count > 1 ? { n: count } : {}) };
    if (!this.start) return { ...ask, width, height };
    return { ...ask, ...(own_size ? {} : { width, height }), control_strength };
  }

  /** A new seed, unless the person holds on to this one. */
  draw() {
    if (!this.fields.locked) this.fields.seed = randomSeed();
  }

  /** Take parameters over; a seed that is taken over is locked, or it would be drawn anew at once. */
  take(told: Recalled) {
    Object.assign(this.fields, told);
    if (told.seed !== undefined) this.fields.locked = true;
    if (told.width !== undefined || told.height !== undefined) this.fields.own_size = false;
  }

  /** The model's own defaults, where a model is chosen that has others. */
  choose(model: Model) {
    this.fields.model = model.id;
    this.fields.steps = model.default_steps;
    this.fields.cfg_scale = model.default_cfg_scale;
  }

  /** A model of those served, where the form has none or one that is not among them. On a first visit what a person has set already stands. */
  settle(served: Model[]) {
    const first = served[0];
    if (!first || served.some((one) => one.id === this.fields.model)) return;
    if (this.fields.model) return this.choose(first);
    const own = { model: first.id, width: first.default_side, height: first.default_side, steps: first.default_steps, cfg_scale: first.default_cfg_scale };
    Object.assign(this.fields, Object.fromEntries(Object.entries(own).filter(([name]) => this.fields[name as keyof Fields] === FIRST[name as keyof Fields])));
  }

  async begin(blob: Blob, name: string) {
    const bitmap = await createImageBitmap(blob);
    const start = { blob, name, width: bitmap.width, height: bitmap.height };
    bitmap.close();
    this.show(start);
    this.fields.own_size = true;
    await keepImage(start);
  }

  drop() {
    if (this.startUrl) URL.revokeObjectURL(this.startUrl);
    this.start = null;
    this.startUrl = "";
    void keepImage(null);
  }

  private show(start: Start) {
    if (this.startUrl) URL.revokeObjectURL(this.startUrl);
    this.start = start;
    this.startUrl = URL.createObjectURL(start.blob);
  }
}

function kept(): Partial<Fields> {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    // only what has the type that it should: an older version may have kept other things
    return Object.fromEntries(Object.entries(found as object).filter(([name, value]) => typeof value === typeof FIRST[name as keyof Fields]));
  } catch {
    return {};
  }
}

export const form = new Form();
