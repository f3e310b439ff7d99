/** The pictures that a search finds, as far as they are loaded, and which of them are chosen. */
import { SvelteSet } from "svelte/reactivity";
import { consoleApi } from "~/api/console";
import type { Picture, PictureQuery } from "~/api/console-types";

const FIRST = 60;
const MORE = 180;
/** the server's own limit for one deletion */
const AT_ONCE = 500;

export class Album {
  /** raw: there may be a hundred thousand, and only whole pictures are ever replaced */
  pictures = $state.raw<Picture[]>([]);
  next = $state<string | null>(null);
  loading = $state(true);
  failure = $state<unknown>();
  chosen = new SvelteSet<string>();
  /** a click chooses instead of opening; so it is, too, as long as something is chosen */
  private mode = $state(false);
  private query: PictureQuery | null = null;
  /** the picture from which a range is chosen */
  private anchor: string | null = null;

  get choosing(): boolean {
    return this.mode || this.chosen.size > 0;
  }

  set choosing(on: boolean) {
    this.mode = on;
    if (!on) this.chosen.clear();
  }

  /** Those before stay until the answer is there, so that nothing flickers while one types. */
  async search(query: PictureQuery) {
    this.query = query;
    this.chosen.clear();
    await this.take(query, FIRST);
  }

  async more() {
    if (this.query && this.next && !this.loading && !this.failure) await this.take(this.query, MORE, this.next);
  }

  /** Whether there is a picture that is newer than all here. */
  async stale(): Promise<boolean> {
    const query = this.query;
    if (!query || this.loading || this.failure) return false;
    const newest = (await consoleApi.pictures({ ...query, limit: 1 })).data[0];
    return query === this.query && newest !== undefined && newest.created_at > (this.pictures[0]?.created_at ?? "");
  }

  retry() {
    if (this.query) void this.take(this.query, FIRST, this.next ?? undefined);
  }

  private async take(query: PictureQuery, limit: number, before?: string) {
    this.loading = true;
    this.failure = undefined;
    try {
      const page = await consoleApi.pictures({ ...query, limit, before });
      if (query !== this.query) return; // another search was begun meanwhile
      this.pictures = before ? [...this.pictures, ...page.data] : page.data;
      this.next = page.next;
    } catch (error) {
      if (query !== this.query) return;
      this.failure = error;
      if (!before) Object.assign(this, { pictures: [], next: null }); // those of the search before would pass for its answer
    } finally {
      if (query === this.query) this.loading = false;
    }
  }

  /** Shown at once, and taken back where the server refuses. */
  async star(picture: Picture, on = !picture.starred) {
    this.replace({ ...picture, starred: on });
    try {
      await consoleApi.star(picture.id, on);
    } catch (error) {
      this.replace(picture);
      throw error;
    }
  }

  private replace(picture: Picture) {
    this.pictures = this.pictures.map((one) => (one.id === picture.id ? picture : one));
  }

  choose(picture: Picture, on: boolean) {
    if (on) this.chosen.add(picture.id);
    else this.chosen.delete(picture.id);
    this.anchor = picture.id;
  }

  /** All from the one chosen last to this one. */
  chooseTo(picture: Picture) {
    const place = (id: string | null) => this.pictures.findIndex((one) => one.id === id);
    const [from, to] = [place(this.anchor ?? picture.id), place(picture.id)].sort((a, b) => a - b) as [number, number];
    for (const one of this.pictures.slice(Math.max(0, from), to + 1)) this.chosen.add(one.id);
  }

  chooseAll() {
    for (const one of this.pictures) this.chosen.add(one.id);
  }

  /** How many went, and how many bytes that freed. */
  async remove(ids: string[]): Promise<{ deleted: number; bytes: number }> {
    const sum = { deleted: 0, bytes: 0 };
    for (let at = 0; at < ids.length; at += AT_ONCE) {
      const part = ids.slice(at, at + AT_ONCE);
      const { deleted, bytes } = await consoleApi.deletePictures(this.query?.service_id ?? "", part);
      sum.deleted += deleted;
      sum.bytes += bytes;
      const gone = new Set(part);
      this.pictures = this.pictures.filter((one) => !gone.has(one.id));
      for (const id of part) this.chosen.delete(id);
    }
    return sum;
  }
}
