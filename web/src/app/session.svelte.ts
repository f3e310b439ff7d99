/** Who is signed in, and which service is looked at. The one state that every page shares. */
import type { Service, State } from "~/api/console-types";

const CHOSEN = "darkroom.service";

class SessionState {
  state = $state<State | null>(null);
  private chosen = $state(localStorage.getItem(CHOSEN) ?? "");

  get signedIn(): boolean {
    return this.state?.signed_in ?? false;
  }

  get csrf(): string | null {
    return this.state?.csrf ?? null;
  }

  get services(): Service[] {
    return this.state?.services ?? [];
  }

  /** A command line as it can be pasted into the shell of the server. */
  command(words: keyof State["commands"]): string {
    return this.state?.commands[words] ?? `darkroom ${words}`;
  }

  /** The service chosen, or the first; undefined before sign-in only. */
  get service(): Service | undefined {
    return this.services.find((one) => one.id === this.chosen) ?? this.services[0];
  }

  choose(id: string) {
    this.chosen = id;
    localStorage.setItem(CHOSEN, id);
  }

  take(state: State) {
    this.state = state;
  }

  /** After services were made or renamed. */
  takeServices(services: Service[]) {
    if (this.state) this.state = { ...this.state, services };
  }

  /** The server no longer knows this session: show sign-in where the person stands. */
  lost() {
    if (this.state?.signed_in) this.state = { ...this.state, signed_in: false, csrf: null, services: [] };
  }
}

export const session = new SessionState();
