/** Light or dark: the system's, until a person chooses. */
const KEPT = "darkroom.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export type Theme = "system" | "light" | "dark";

class ThemeState {
  chosen = $state<Theme>((localStorage.getItem(KEPT) as Theme | null) ?? "system");
  private system = $state(dark.matches);

  constructor() {
    dark.addEventListener("change", (event) => {
      this.system = event.matches;
      this.apply();
    });
    this.apply();
  }

  get now(): "light" | "dark" {
    return this.chosen === "system" ? (this.system ? "dark" : "light") : this.chosen;
  }

  choose(theme: Theme) {
    this.chosen = theme;
    if (theme === "system") localStorage.removeItem(KEPT);
    else localStorage.setItem(KEPT, theme);
    this.apply();
  }

  private apply() {
    document.documentElement.dataset.theme = this.now;
  }
}

export const theme = new ThemeState();
