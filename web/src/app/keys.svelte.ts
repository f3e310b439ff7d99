/** The keys of the service that is looked at, for lists that know them by their public id only. */
import { consoleApi } from "~/api/console";
import type { Key } from "~/api/console-types";

class Keys {
  private of = "";
  all = $state<Key[]>([]);
  private ready = $state(false);

  /** A list without the names of its keys is better than none: a failure here is not told. */
  async load(service: string) {
    if (this.of !== service) Object.assign(this, { of: service, all: [], ready: false });
    const found = await consoleApi.keys(service).catch(() => null);
    if (this.of === service && found) Object.assign(this, { all: found, ready: true });
  }

  /** The dashboard works by keys of its own, which are in no list. */
  name(id: string | null): string {
    if (!id) return "–";
    const known = this.all.find((one) => one.public_id === id);
    return known?.name || (this.ready ? "dashboard" : id);
  }

  get options(): { value: string; label: string }[] {
    return [{ value: "", label: "Any" }, ...this.all.map((one) => ({ value: one.public_id, label: one.name || one.public_id }))];
  }
}

export const serviceKeys = new Keys();
