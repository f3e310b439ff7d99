/** The JSON that the dashboard needs beyond the public API: /console/*. */
import type { Parameters } from "./types";

export interface Service {
  id: string;
  name: string;
  models: string[];
  /** the value SERVICE_ID: the whole base address */
  url: string;
  created_at: string;
}

export interface State {
  signed_in: boolean;
  password_set: boolean;
  csrf: string | null;
  version: string;
  base: string;
  services?: Service[];
  notices: string[];
  /** command lines of the server's shell, by their words: they begin with where its `darkroom` lies */
  commands: Record<"link" | "password" | "generate" | "edit", string>;
}

export interface Session {
  id: string;
  created_at: string;
  last_seen_at: string;
  agent: string;
  current: boolean;
}

export interface Limits {
  concurrent: number | null;
  queued: number | null;
  pictures_per_minute: number | null;
  pixel_steps_per_day: number | null;
  weight: number | null;
}

export interface Key {
  public_id: string;
  service_id: string;
  name: string;
  last4: string;
  created_at: string;
  last_used_at: string | null;
  expires_at: string | null;
  revoked_at: string | null;
  limits: Limits | null;
}

export interface NewKey extends Key {
  /** the whole key; no later reply has it */
  key: string;
}

export interface Picture {
  id: string;
  job_id: string;
  place: number;
  width: number;
  height: number;
  bytes: number;
  model: string;
  seed: number;
  prompt: string;
  created_at: string;
  starred: boolean;
  key_id: string | null;
  parameters: Parameters;
  image: string;
  thumbnail: string;
}

export interface PictureQuery {
  service_id: string;
  limit?: number;
  before?: string;
  prompt?: string;
  seed?: string;
  model?: string;
  key?: string;
  since?: string;
  until?: string;
  starred?: boolean;
}

export type Outcome = "queued" | "running" | "finished" | "failed" | "cancelled" | "cached";

export interface Call {
  id: string;
  at: string;
  key_id: string | null;
  method: string;
  route: string;
  status: number;
  ms: number;
  job_id: string | null;
  steps: number | null;
  queue_ms: number | null;
  run_ms: number | null;
  error: string | null;
  /** of its job; null where it has none, or it was deleted */
  outcome: Outcome | null;
  job_error: string | null;
}

export interface CallInFull extends Call {
  body: Record<string, unknown> | null;
}

export interface CallQuery {
  service_id: string;
  limit?: number;
  before?: string;
  status?: string;
  key?: string;
  route?: string;
  since?: string;
  until?: string;
}

export type UsageBy = "day" | "key" | "model";

export interface UsageQuery {
  service_id: string;
  since?: string;
  until?: string;
  by: UsageBy;
}

export interface UsageRow {
  group: string;
  pictures: number;
  pixel_steps: number;
  requests: number;
  errors: number;
  cancelled: number;
  p50_ms: number | null;
  p95_ms: number | null;
}

export interface Usage {
  data: UsageRow[];
  queue_depth: number;
}

export interface ModelState {
  name: string;
  family: string;
  hub_id: string | null;
  installed: boolean;
  served: boolean;
  /** what starts the server with this model too; empty where it is served */
  serve_command: string;
  loaded: boolean;
  loading: boolean;
  /** it is in memory, and converted and measured beside its work */
  preparing: boolean;
  memory_bytes: number | null;
  /** what a load will take, as far as it is known; 0 where not */
  memory_needed_bytes: number;
  disk_bytes: number | null;
  default_side: number;
  max_side: number;
  default_steps: number;
  steps: [number, number];
  default_cfg_scale: number;
  gated: boolean;
  license: { name: string; version: string; url: string; asks: string[]; accepted: boolean; notice: string; badge: string };
  pull: { part: number; error: string | null } | null;
  hint: string;
  examples: string[];
}

export type ModelAct = "accept" | "load" | "unload" | "pull" | "cancel-pull";

export interface System {
  version: string;
  python: string;
  platform: string;
  device: string;
  dtype: string;
  worker: { status: string; error: string | null };
  queue_depth: number;
  running: number;
  /** by "model width height": seconds of a step by its rows, and of a decode */
  costs: Record<string, Record<string, number>>;
  disk: { pictures_bytes: number; free_bytes: number; database_bytes: number };
  uptime_s: number;
}

export interface Page<T> {
  data: T[];
  next: string | null;
}
