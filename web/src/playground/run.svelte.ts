/** One request for pictures, from its job's acceptance to its end, as its events tell. */
import type { Ask, Job, Status, Waiting } from "~/api/types";
import { cancel, eventsUrl, imageUrl, job as find } from "~/api/v1";
import { linesOf } from "~/api/errors";

const RETRY_MS = 3000;

export class Run {
  job = $state.raw<Job>() as Job;
  status = $state<Status>("queued");
  /** the steps done, by picture */
  steps = $state<number[]>([]);
  of = $state(0);
  secondsLeft = $state<number | null>(null);
  waiting = $state<Waiting | null>(null);
  /** part of the model that is in memory, while it is loaded */
  loading = $state<number | null>(null);
  /** the newest preview, by picture */
  previews = $state<string[]>([]);
  errors = $state<string[]>([]);
  cancelling = $state(false);
  private source: EventSource | null = null;

  constructor(
    readonly service: string,
    job: Job,
    /** the picture it began from; only in the visit in which it was asked for */
    readonly start: Blob | undefined,
    private readonly ended: () => void,
  ) {
    this.status = job.status; // one that has ended already ends for nobody
    this.take(job);
  }

  get id(): string {
    return this.job.id;
  }

  get active(): boolean {
    return this.status === "queued" || this.status === "running";
  }

  /** 0 to 1 over all of its pictures. */
  get part(): number {
    return this.of ? Math.min(1, this.steps.reduce((sum, step) => sum + step, 0) / (this.of * this.job.n)) : 0;
  }

  get step(): number {
    return Math.max(0, ...this.steps);
  }

  /** What to show of a picture: itself, or the newest preview. */
  shown(place: number): string | undefined {
    return this.status === "finished" ? imageUrl(this.service, this.id, place) : this.previews[place];
  }

  /** The request that would make one of its pictures again. */
  ask(place = 0): Ask {
    const { model, prompt = "", negative_prompt, width, height, steps, cfg_scale, control_strength } = this.job.parameters;
    const ask: Ask = { model, prompt, width, height, steps, cfg_scale, seed: this.seed(place) };
    return { ...ask, ...(negative_prompt ? { negative_prompt } : {}), ...(control_strength === undefined ? {} : { control_strength }) };
  }

  seed(place: number): number {
    return this.job.images[place]?.seed ?? this.job.seed + place;
  }

  /** A newer state of the job. */
  take(job: Job) {
    const was = this.active;
    this.job = job;
    this.status = job.status;
    this.waiting = job.queue;
    if (job.progress) {
      this.of = job.progress.of;
      this.steps[0] = Math.max(this.steps[0] ?? 0, job.progress.step);
    }
    if (job.error) this.errors = job.error.errors;
    if (was && !this.active) this.end();
  }

  /** Follow its events; the browser itself goes on after a break, from the event that came last. */
  listen() {
    if (this.source || !this.active) return;
    const source = new EventSource(eventsUrl(this.service, this.id));
    this.source = source;
    const on = (name: string, act: (data: any) => void) => source.addEventListener(name, (event) => act(JSON.parse((event as MessageEvent<string>).data)));
    on("queued", (data: Waiting) => (this.waiting = data));
    on("loading", (data: { part: number }) => (this.loading = data.part));
    on("progress", (data: { picture: number; step: number; of: number; seconds_left: number | null }) => {
      Object.assign(this, { status: "running", loading: null, waiting: null, of: data.of, secondsLeft: data.seconds_left });
      this.steps[data.picture] = data.step;
    });
    on("preview", (data: { picture: number; image: { b64: string; media_type: string } }) => {
      this.previews[data.picture] = `data:${data.image.media_type};base64,${data.image.b64}`;
    });
    on("retrying", () => Object.assign(this, { status: "queued", steps: [], previews: [] }));
    for (const name of ["finished", "failed", "cancelled"]) on(name, () => void this.refresh());
    source.onerror = () => {
      // closed for good: not a break of the line but an answer that is no stream
      if (source.readyState === EventSource.CLOSED) setTimeout(() => void this.refresh(), RETRY_MS);
    };
  }

  async refresh() {
    this.quiet();
    try {
      this.take(await find(this.service, this.id));
    } catch (error) {
      Object.assign(this, { status: "failed", errors: linesOf(error) });
      this.end();
    }
    this.listen();
  }

  /** At once while it waits, else at the next step: until then it is `cancelling`. */
  async stop() {
    this.cancelling = true;
    try {
      this.take(await cancel(this.service, this.id));
    } catch (error) {
      this.cancelling = false;
      throw error;
    }
  }

  quiet() {
    this.source?.close();
    this.source = null;
  }

  private end() {
    this.quiet();
    this.ended();
  }
}
