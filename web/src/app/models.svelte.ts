/** The models of the service that is looked at: limits, defaults, hints. */
import type { Model } from "~/api/types";
import { models } from "~/api/v1";

class Models {
  private of = "";
  all = $state<Model[]>([]);
  failure = $state<unknown>();
  ready = $state(false);

  async load(service: string) {
    if (this.of !== service) Object.assign(this, { of: service, all: [], ready: false });
    this.failure = undefined;
    try {
      const found = await models(service);
      if (this.of === service) Object.assign(this, { all: found, ready: true });
    } catch (error) {
      this.failure = error;
    }
  }

  named(id: string): Model | undefined {
    return this.all.find((one) => one.id === id);
  }
}

export const served = new Models();
