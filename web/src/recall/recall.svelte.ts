/** Parameters that somebody may want in the form: from a file that was dropped, or from a picture of the gallery.
 *  Nothing is applied before the difference has been shown. */
import { toasts } from "~/ui/toasts.svelte";
import { type Found, found, recalledOf } from "./recalled";

interface Offer extends Found {
  /** the picture, to be seen and to begin from */
  blob?: Blob;
  name: string;
}

class Recall {
  offer = $state<Offer | null>(null);

  /** A file from outside. Without parameters in it, it is offered as a picture to begin from. */
  async read(file: Blob, name: string) {
    if (!/^image\/(png|jpeg|webp)$/.test(file.type)) return toasts.bad(`${name} is no PNG, JPEG or WebP.`);
    const known = await found(file);
    this.offer = { ...(known ?? { by: "", recalled: {}, beyond: [] }), blob: file, name };
  }

  /** A picture or a job of ours. */
  show(parameters: object, name: string, blob?: Blob) {
    this.offer = { by: "Darkroom", recalled: recalledOf(parameters), beyond: [], name, blob };
  }
}

export const recall = new Recall();
