/** What the public API answers with: docs/api.md. The schema leaves these bodies open, so they are written down here. */

export type Status = "queued" | "running" | "finished" | "failed" | "cancelled";

export interface Parameters {
  model: string;
  prompt?: string;
  negative_prompt?: string;
  seed: number;
  width: number;
  height: number;
  steps: number;
  steps_run?: number | null;
  cfg_scale: number;
  /** influence of the picture that was given: 1 keeps it */
  control_strength?: number;
  /** the same in diffusers' sense: 1 redraws all */
  strength?: number;
  loras?: { name: string; scale: number }[];
}

export interface Waiting {
  position: number;
  seconds_to_start: number | null;
  seconds_to_finish: number | null;
}

export interface JobImage {
  id: string;
  seed: number;
  width: number;
  height: number;
  bytes: number;
  sha256: string;
  url: string;
}

export interface Job {
  id: string;
  status: Status;
  model: string;
  seed: number;
  n: number;
  created_at: string;
  started_at: string | null;
  ended_at: string | null;
  parameters: Parameters;
  steps_run: number | null;
  store: boolean;
  queue: Waiting | null;
  progress: { step: number; of: number } | null;
  finish_reason: string | null;
  notes: string[];
  timings: { queue_ms: number; inference_ms: number } | null;
  error: { name: string; errors: string[]; status: number } | null;
  images: JobImage[];
}

export interface Model {
  id: string;
  family: string;
  default_side: number;
  max_side: number;
  default_steps: number;
  steps: [number, number];
  default_cfg_scale: number;
  loaded: boolean;
  loading: boolean;
  memory_bytes: number | null;
  loras: { name: string }[];
  hint: string;
  examples: string[];
  license: string;
  license_url: string;
  license_accepted: boolean;
  notice: string;
  badge: string;
}

/** The fields of a request for pictures, as both routes take them. */
export interface Ask {
  model: string;
  prompt: string;
  negative_prompt?: string;
  width?: number;
  height?: number;
  steps: number;
  cfg_scale: number;
  seed: number;
  n?: number;
  preview_every?: number;
  control_strength?: number;
}

export interface JobQuery {
  limit?: number;
  before?: string;
  status?: string;
  model?: string;
  created_after?: string;
  created_before?: string;
}
