/** A key as it may be shown: enough to know it again, nothing to use it by. */
import type { Key, Limits } from "~/api/console-types";

export function masked(key: Pick<Key, "public_id" | "last4">): string {
  return `dk_${key.public_id}_…${key.last4}`;
}

export type KeyState = "active" | "expired" | "revoked";

export function stateOf(key: Pick<Key, "revoked_at" | "expires_at">, now = Date.now()): KeyState {
  if (key.revoked_at) return "revoked";
  return key.expires_at && Date.parse(key.expires_at) <= now ? "expired" : "active";
}

/** The limits that are set, in short. */
export function limitsInWords(limits: Limits | null): string {
  if (!limits) return "the server's";
  const said = [
    limits.concurrent && `${limits.concurrent} at once`,
    limits.queued && `${limits.queued} queued`,
    limits.pictures_per_minute && `${limits.pictures_per_minute} a minute`,
    limits.pixel_steps_per_day && `${(limits.pixel_steps_per_day / 1e6).toLocaleString()} M pixel-steps a day`,
    limits.weight && limits.weight !== 1 && `weight ${limits.weight}`,
  ].filter(Boolean);
  return said.length ? said.join(", ") : "none";
}
