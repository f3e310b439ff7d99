/** A router over history: the path says the page, the query what is asked of it. */
class Router {
  path = $state(location.pathname);
  query = $state(new URLSearchParams(location.search));

  constructor() {
    addEventListener("popstate", () => this.read());
  }

  private read() {
    this.path = location.pathname;
    this.query = new URLSearchParams(location.search);
  }

  go(address: string, replace = false) {
    history[replace ? "replaceState" : "pushState"](null, "", address);
    this.read();
    if (!replace) scrollTo(0, 0);
  }

  /** Change the query in place, for filters: what is empty goes. */
  ask(changes: Record<string, string | null | undefined>) {
    const query = new URLSearchParams(this.query);
    for (const [name, value] of Object.entries(changes)) value ? query.set(name, value) : query.delete(name);
    this.go(this.path + (query.size ? `?${query}` : ""), true);
  }
}

export const router = new Router();

/** Plain left clicks on links to our own pages stay in the app; the server's other addresses are left to the browser. */
export function followLinks(pages: ReadonlySet<string>) {
  document.addEventListener("click", (event) => {
    const link = (event.target as Element | null)?.closest?.("a[href]");
    if (!(link instanceof HTMLAnchorElement) || event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || link.target || link.hasAttribute("download")) return;
    if (link.origin !== location.origin || !pages.has(link.pathname)) return;
    event.preventDefault();
    if (link.href !== location.href) router.go(link.pathname + link.search);
  });
}
