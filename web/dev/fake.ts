/** For development only: /console/* from fixtures, and /{service}/v1 passed on to a real server with a key.
 *  DARKROOM_FAKE=http://127.0.0.1:8000/svc-... DARKROOM_KEY=dk_... npm run dev */
import { request as call, type IncomingMessage, type ServerResponse } from "node:http";
import type { Plugin } from "vite";

const target = new URL(process.env.DARKROOM_FAKE ?? "http://127.0.0.1:8000/svc-none");
const key = process.env.DARKROOM_KEY ?? "";
const serviceId = target.pathname.slice(1);
const now = new Date().toISOString();
let signedIn = !process.env.DARKROOM_SIGNED_OUT;
let passwordSet = false;
let tries = 0;

const services = [{ id: serviceId, name: "default", models: [] as string[], url: target.href, created_at: now }];
const keys = [{
  public_id: "gdjhgrs2ab8j", service_id: serviceId, name: "first", last4: "3521", created_at: now, last_used_at: now as string | null, expires_at: null, revoked_at: null as string | null, limits: null,
}];
const state = () => ({
  signed_in: signedIn, password_set: passwordSet, csrf: signedIn ? "fake" : null, version: "0.1.0", base: target.origin, services: signedIn ? services : undefined, notices: [],
});
const refused = (name: string, line: string) => ({ id: "req-fake", name, errors: [line] });

type Answer = [status: number, body: unknown, headers?: Record<string, string>];
type Handler = (body: any, path: string[], query: URLSearchParams) => Answer;

/** By method and path; the first that matches answers. `*` stands for one part. */
export const handlers: [string, Handler][] = [
  ["GET /console/state", () => [200, state()]],
  ["POST /console/sign-in", (body) => {
    if (body.link === "expired" || (body.password && body.password !== "correct horse")) {
      if (++tries > 3) return [429, refused("too_many_requests", "too many attempts to sign in"), { "Retry-After": "12" }];
      return [401, refused("unauthorized", body.link ? "this link was used or is too old; `darkroom link` prints another" : "the password is wrong")];
    }
    signedIn = true;
    return [200, state()];
  }],
  ["POST /console/sign-out", () => {
    signedIn = false;
    return [200, state()];
  }],
  ["POST /console/password", (body) => {
    if (body.password.length < 10) return [422, refused("invalid_password", "password must have at least 10 characters")];
    passwordSet = true;
    return [200, state()];
  }],
  ["GET /console/sessions", () => [200, { data: [
    { id: "ses-1", created_at: now, last_seen_at: now, agent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36", current: true },
    { id: "ses-2", created_at: "2026-11-20T09:00:00Z", last_seen_at: "2026-11-24T18:00:00Z", agent: "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.0 Mobile/15E148 Safari/604.1", current: false },
  ] }]],
  ["DELETE /console/sessions/*", () => [204, null]],
  ["GET /console/services", () => [200, { data: services }]],
  ["POST /console/services", (body) => {
    const made = { id: `svc-${Math.random().toString(36).slice(2, 10)}`, name: body.name, models: body.models ?? [], url: `${target.origin}/svc-other`, created_at: new Date().toISOString() };
    services.push(made);
    return [200, made];
  }],
  ["PATCH /console/services/*", (body, path) => [200, Object.assign(services.find((one) => one.id === path[3]) ?? {}, body)]],
  ["GET /console/keys", () => [200, { data: keys }]],
  ["POST /console/keys", (body) => {
    const made = { ...keys[0]!, public_id: `fake${keys.length}`, name: body.name, last_used_at: null, created_at: new Date().toISOString() };
    keys.push(made);
    return [200, { ...made, key }];
  }],
  ["PATCH /console/keys/*", (body, path) => [200, Object.assign(keys.find((one) => one.public_id === path[3]) ?? {}, body)]],
  ["DELETE /console/keys/*", (_body, path) => {
    Object.assign(keys.find((one) => one.public_id === path[3]) ?? {}, { revoked_at: new Date().toISOString() });
    return [204, null];
  }],
];

async function bodyOf(incoming: IncomingMessage): Promise<any> {
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk as Buffer);
  return chunks.length ? JSON.parse(Buffer.concat(chunks).toString()) : {};
}

async function answer(incoming: IncomingMessage, outgoing: ServerResponse) {
  const url = new URL(incoming.url ?? "/", "http://x");
  const path = url.pathname.split("/");
  const found = handlers.find(([rule]) => {
    const [method, parts] = [rule.split(" ")[0], rule.split(" ")[1]!.split("/")];
    return method === incoming.method && parts.length === path.length && parts.every((part, i) => part === "*" || part === path[i]);
  });
  const open = ["/console/state", "/console/sign-in"].includes(url.pathname);
  const [status, body, headers]: Answer = !signedIn && !open ? [401, refused("unauthorized", "sign in first")]
    : found ? found[1](await bodyOf(incoming), path, url.searchParams) : [404, refused("not_found", `the fake has no ${incoming.method} ${url.pathname}`)];
  outgoing.writeHead(status, { "Content-Type": "application/json", ...headers }).end(body === null ? undefined : JSON.stringify(body));
}

function pass(incoming: IncomingMessage, outgoing: ServerResponse) {
  const headers = { ...incoming.headers, host: target.host, authorization: `Bearer ${key}` };
  const upstream = call({ host: target.hostname, port: target.port, path: incoming.url, method: incoming.method, headers }, (reply) => {
    outgoing.writeHead(reply.statusCode ?? 502, reply.headers);
    reply.pipe(outgoing);
  });
  upstream.on("error", () => outgoing.writeHead(502).end());
  outgoing.on("close", () => upstream.destroy());
  incoming.pipe(upstream);
}

const POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

export function fakeConsole(): Plugin {
  return {
    name: "fake-console",
    configureServer(server) {
      server.middlewares.use((incoming, outgoing, next) => {
        const path = incoming.url ?? "";
        if (path.startsWith("/console/")) void answer(incoming, outgoing);
        else if (/^\/svc-[^/]+\/v1\//.test(path)) pass(incoming, outgoing);
        else next();
      });
    },
    // the built pages, under the policy that the server sends with them
    configurePreviewServer(server) {
      server.middlewares.use((incoming, outgoing, next) => {
        const path = incoming.url ?? "";
        outgoing.setHeader("Content-Security-Policy", POLICY);
        if (path.startsWith("/console/")) void answer(incoming, outgoing);
        else if (/^\/svc-[^/]+\/v1\//.test(path)) pass(incoming, outgoing);
        else next();
      });
    },
  };
}
