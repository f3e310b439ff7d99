/** The public API, the same that everybody uses, with the service in the address and the session's cookie in place of a key. */
import createClient, { type Middleware } from "openapi-fetch";
import { session } from "~/app/session.svelte";
import { errorOf } from "./errors";
import type { paths } from "./schema";
import type { Ask, Job, JobQuery, Model } from "./types";

const csrf: Middleware = {
  onRequest({ request }) {
    if (request.method !== "GET" && session.csrf) request.headers.set("X-CSRF-Token", session.csrf);
    return request;
  },
};

function client(service: string) {
  const made = createClient<paths>({ baseUrl: `${location.origin}/${service}`, credentials: "same-origin" });
  made.use(csrf);
  return made;
}

interface Reply {
  data?: unknown;
  error?: unknown;
  response: Response;
}

/** The body of a reply, or the server's reason thrown. */
function body<T>({ data, error, response }: Reply): T {
  if (response.status === 401) session.lost();
  if (!response.ok) throw errorOf(response.status, error, response.headers);
  return data as T;
}

export async function models(service: string): Promise<Model[]> {
  return body<{ data: Model[] }>(await client(service).GET("/v1/models")).data;
}

export async function jobs(service: string, query: JobQuery = {}): Promise<{ data: Job[]; next: string | null }> {
  // the schema does not tell of this address's parameters; docs/api.md does
  return body(await client(service).GET("/v1/jobs", { params: { query: query as never } }));
}

export async function job(service: string, id: string): Promise<Job> {
  return body(await client(service).GET("/v1/jobs/{job_id}", { params: { path: { job_id: id } } as never }));
}

export async function cancel(service: string, id: string): Promise<Job> {
  return body(await client(service).POST("/v1/jobs/{job_id}/cancel", { params: { path: { job_id: id } } as never }));
}

/** Ask for pictures; with a picture to begin from it is image to image. Comes back at once, with the job.
 *  `anew` has them made even where equal ones are here. */
export async function submit(service: string, ask: Ask, image?: Blob, anew = false): Promise<Job> {
  const headers = { Prefer: "respond-async", ...(anew ? { "Cache-Control": "no-cache" } : {}) };
  if (!image) return body(await client(service).POST("/v1/images/generate", { body: ask as never, headers }));
  const form = new FormData();
  for (const [name, value] of Object.entries(ask)) if (value !== undefined) form.set(name, String(value));
  form.set("image", image, "image");
  return body(await client(service).POST("/v1/images/control", { body: form as never, bodySerializer: (form: unknown) => form as FormData, headers }));
}

export function imageUrl(service: string, job: string, place = 0): string {
  return `/${service}/v1/jobs/${job}/image?place=${place}`;
}

export function eventsUrl(service: string, job: string): string {
  return `/${service}/v1/jobs/${job}/events`;
}
