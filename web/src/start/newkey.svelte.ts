/** Keys made in this visit, by service. The server shows a key once; until the page is left it is here to be copied. */
class NewKeys {
  private made = $state<Record<string, string>>({});

  of(service: string): string | undefined {
    return this.made[service];
  }

  keep(service: string, key: string) {
    this.made[service] = key;
  }
}

export const newKeys = new NewKeys();
