import { linesOf } from "~/api/errors";

/** Short notices in the corner, for what happened and needs no answer. */
export interface Toast {
  id: number;
  kind: "good" | "bad";
  lines: string[];
}

class Toasts {
  all = $state<Toast[]>([]);
  private last = 0;

  good(line: string) {
    this.show("good", [line], 4000);
  }

  bad(line: string) {
    this.show("bad", [line], 9000);
  }

  /** Any failure, in the server's own words where it said why. */
  error(error: unknown) {
    this.show("bad", linesOf(error), 9000);
  }

  close(id: number) {
    this.all = this.all.filter((one) => one.id !== id);
  }

  private show(kind: Toast["kind"], lines: string[], ms: number) {
    const id = ++this.last;
    this.all = [...this.all.slice(-2), { id, kind, lines }];
    setTimeout(() => this.close(id), ms);
  }
}

export const toasts = new Toasts();
