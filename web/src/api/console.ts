/** The small client of /console/*. Every call throws ApiError; 401 means that the session is over, and leads to sign-in. */
import { session } from "~/app/session.svelte";
import type {
  Call, CallInFull, CallQuery, Key, Limits, ModelAct, ModelState, NewKey, Page, Picture, PictureQuery, Service, Session, State, System, Usage, UsageQuery,
} from "./console-types";
import { errorOf } from "./errors";

type Query = Record<string, string | number | boolean | undefined | null>;

/** `?a=1&b=2`, without what is absent or empty. */
export function queryOf(query: object): string {
  const asked = Object.entries(query as Query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return asked.length ? `?${new URLSearchParams(asked.map(([name, value]) => [name, String(value)]))}` : "";
}

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session.csrf) headers["X-CSRF-Token"] = session.csrf;
  const reply = await fetch(`/console${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), credentials: "same-origin" });
  const found: unknown = reply.status === 204 ? undefined : await reply.json().catch(() => undefined);
  if (reply.status === 401 && path !== "/sign-in" && path !== "/password") session.lost();
  if (!reply.ok) throw errorOf(reply.status, found, reply.headers);
  return found as T;
}

const at = encodeURIComponent;

export const consoleApi = {
  state: () => call<State>("GET", "/state"),
  signIn: (by: { link: string } | { password: string }) => call<State>("POST", "/sign-in", by),
  signOut: () => call<unknown>("POST", "/sign-out"),
  setPassword: (password: string, old?: string) => call<State>("POST", "/password", { password, ...(old ? { old } : {}) }),
  sessions: async () => (await call<{ data: Session[] }>("GET", "/sessions")).data,
  endSession: (id: string) => call<unknown>("DELETE", `/sessions/${at(id)}`),

  services: async () => (await call<{ data: Service[] }>("GET", "/services")).data,
  createService: (name: string, models: string[]) => call<Service>("POST", "/services", { name, models }),
  changeService: (id: string, change: { name?: string; models?: string[] }) => call<Service>("PATCH", `/services/${at(id)}`, change),
  keys: async (service_id: string) => (await call<{ data: Key[] }>("GET", `/keys${queryOf({ service_id })}`)).data,
  createKey: (service_id: string, name: string, expires_at?: string) => call<NewKey>("POST", "/keys", { service_id, name, ...(expires_at ? { expires_at } : {}) }),
  limitKey: (id: string, limits: Limits | null) => call<Key>("PATCH", `/keys/${at(id)}`, { limits }),
  revokeKey: (id: string) => call<unknown>("DELETE", `/keys/${at(id)}`),

  pictures: (query: PictureQuery) => call<Page<Picture>>("GET", `/pictures${queryOf(query)}`),
  picture: (id: string) => call<Picture>("GET", `/pictures/${at(id)}`),
  star: (id: string, starred: boolean) => call<Picture>("PATCH", `/pictures/${at(id)}`, { starred }),
  deletePictures: (service_id: string, ids: string[]) => call<{ deleted: number; bytes: number }>("POST", "/pictures/delete", { service_id, ids }),

  requests: (query: CallQuery) => call<Page<Call>>("GET", `/requests${queryOf(query)}`),
  request: (id: string) => call<CallInFull>("GET", `/requests/${at(id)}`),

  usage: (query: UsageQuery) => call<Usage>("GET", `/usage${queryOf(query)}`),
  usageCsv: (query: UsageQuery) => `/console/usage${queryOf({ ...query, format: "csv" })}`,

  models: async () => (await call<{ data: ModelState[] }>("GET", "/models")).data,
  model: (name: string, act: ModelAct) => call<ModelState>("POST", `/models/${at(name)}/${act}`),
  system: () => call<System>("GET", "/system"),
};
