/** Which of the account's dialogs is open. The menu opens them, and any page may. */
class Account {
  shown = $state<"sessions" | "password" | null>(null);
}

export const account = new Account();
