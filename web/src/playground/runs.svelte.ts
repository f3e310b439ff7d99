/** What the Playground asked for: what waits, what runs, what is done. */
import type { Ask } from "~/api/types";
import { jobs, submit } from "~/api/v1";
import { Run } from "./run.svelte";

/** A browser opens six connections to a server, over all tabs; each stream keeps one. The rest is asked after. */
const STREAMS = 2;
const POLL_MS = 2500;
/** Some more than one looks at; the gallery has the others. */
const MOST = 40;
const KEPT = "darkroom.runs";

class Runs {
  /** newest first */
  all = $state.raw<Run[]>([]);
  private service = "";
  private timer: ReturnType<typeof setTimeout> | undefined;
  /** the frame that a person chose; without one, what runs is followed */
  private chosen = $state.raw<Run | null>(null);
  place = $state(0);
  /** Earlier runs are being looked up. */
  resuming = $state(false);

  get active(): Run[] {
    return this.all.filter((run) => run.active);
  }

  /** The run on the stage: the one chosen, else the one that runs, else the newest. */
  get shown(): Run | undefined {
    return this.chosen ?? this.active.at(-1) ?? this.all[0];
  }

  choose(run: Run | null, place = 0) {
    this.chosen = run;
    this.place = place;
  }

  async submit(service: string, ask: Ask, start?: Blob, anew = false): Promise<Run> {
    // previews cost the machine a little, so about eight of them
    const job = await submit(service, { ...ask, preview_every: Math.max(1, Math.ceil(ask.steps / 8)) }, start, anew);
    const run = new Run(service, job, start, () => this.ended(run));
    this.all = [run, ...this.all.filter((other) => other.id !== run.id)].slice(0, MOST);
    localStorage.setItem(KEPT, JSON.stringify([...new Set([run.id, ...keptIds()])].slice(0, MOST)));
    this.choose(run.active ? null : run);
    this.follow();
    return run;
  }

  /** After a reload, or for another service: what was asked for here and is still known to the server. */
  async resume(service: string) {
    if (this.service === service) return this.follow();
    this.leave();
    Object.assign(this, { service, all: [], chosen: null, place: 0 });
    const own = new Set(keptIds());
    if (!own.size) return;
    this.resuming = true;
    const [open, newest] = await Promise.all([jobs(service, { status: "queued,running", limit: 100 }), jobs(service, { limit: 60 })]).catch((error: unknown) => {
      this.service = ""; // so that it is tried again
      throw error;
    }).finally(() => (this.resuming = false));
    if (this.service !== service) return;
    const found = new Map([...newest.data, ...open.data].filter((job) => own.has(job.id)).map((job) => [job.id, job]));
    const known = new Set(this.all.map((run) => run.id));
    const runs = [...found.values()].filter((job) => !known.has(job.id)).map((job) => {
      const run: Run = new Run(service, job, undefined, () => this.ended(run));
      return run;
    });
    this.all = [...this.all, ...runs].sort((a, b) => b.job.created_at.localeCompare(a.job.created_at)).slice(0, MOST);
    this.follow();
  }

  /** When the page is left: nothing is listened to, everything goes on. */
  leave() {
    clearTimeout(this.timer);
    for (const run of this.all) run.quiet();
  }

  /** Streams for those whose turn is next, a question now and then for the others. */
  private follow() {
    clearTimeout(this.timer);
    const oldest = this.active.reverse();
    for (const run of oldest.slice(0, STREAMS)) run.listen();
    if (oldest.length > STREAMS) this.timer = setTimeout(() => void this.poll(), POLL_MS);
  }

  private async poll() {
    try {
      const open = new Map((await jobs(this.service, { status: "queued,running", limit: 100 })).data.map((job) => [job.id, job]));
      for (const run of this.active.reverse().slice(STREAMS)) {
        const job = open.get(run.id);
        if (job) run.take(job);
        else await run.refresh();
      }
    } catch {
      // the next question may be answered
    }
    this.follow();
  }

  private ended(run: Run) {
    // what one has just seen come into being stays in sight until something else runs
    if (!this.chosen && !this.active.length && run.status === "finished") this.choose(run, this.place);
    this.all = [...this.all];
    this.follow();
  }
}

function keptIds(): string[] {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
    return Array.isArray(found) ? found.map(String) : [];
  } catch {
    return [];
  }
}

export const runs = new Runs();
