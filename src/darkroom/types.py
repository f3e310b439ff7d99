"""The vocabulary. Frozen dataclasses that every room may speak of; this file imports nothing of ours.

Lengths are in pixels, times in seconds, instants in seconds since the epoch (UTC), unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

MAX_SEED = 4294967295


class Status(StrEnum):
    """Where a Job stands. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (Status.FINISHED, Status.FAILED, Status.CANCELLED)


@dataclass(frozen=True)
class Lora:
    """A LoRA asked for: the name of its file, and how strongly it acts (1 as it was trained, below 0 the other way)."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class Params:
    """What a person asked for, checked once at the door.

    seed is drawn already (1 to MAX_SEED). image, where there is one, is the init picture as raw RGB of exactly
    height x width x 3 bytes, and control_strength (0 to 1, 1 keeps the picture) goes with it; both None mean text
    to image. The strength is a Decimal, because the number of steps is computed in decimal. loras stand in the order of
    their names, each once. preview_every asks for a Preview after every so many steps (0: none), and changes nothing of the
    picture.
    """

    model: str
    prompt: str
    negative_prompt: str = ""
    steps: int = 30
    width: int = 512
    height: int = 512
    cfg: float = 7.0
    seed: int = 1
    image: bytes | None = field(default=None, repr=False)
    control_strength: Decimal | None = None
    loras: tuple[Lora, ...] = ()
    preview_every: int = 0


@dataclass(frozen=True)
class Queued:
    """The Engine has the Job; no step was run yet."""

    job_id: str


@dataclass(frozen=True)
class Loading:
    """The Job waits for its model, of which `part` (0 to 1) is in memory."""

    job_id: str
    part: float


@dataclass(frozen=True)
class Began:
    """The nets are about to touch the Job for the first time (again after a Retrying). No Queued or Loading comes after it."""

    job_id: str


@dataclass(frozen=True)
class Retrying:
    """A worker died with the Job in its nets' hands, which makes `attempts` such deaths; it will be tried again."""

    job_id: str
    attempts: int


@dataclass(frozen=True)
class Progress:
    """One denoising step is done: `step` of `of`."""

    job_id: str
    step: int
    of: int


@dataclass(frozen=True)
class Preview:
    """A small picture of an unfinished Job, as JPEG bytes."""

    job_id: str
    step: int
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """The picture: raw RGB, height x width x 3 bytes. `note` tells what the model could not take of the prompt."""

    job_id: str
    pixels: bytes = field(repr=False)
    width: int
    height: int
    steps_run: int
    queue_seconds: float
    inference_seconds: float
    note: str = ""


@dataclass(frozen=True)
class Failed:
    """The Job cannot be done. `name` and `message` are fit for the client; `retry_after` where trying again may help."""

    job_id: str
    name: str
    message: str
    status: int = 500
    retry_after: float | None = None


@dataclass(frozen=True)
class Cancelled:
    """The Job was stopped on request, before its end."""

    job_id: str


Event = Queued | Began | Retrying | Loading | Progress | Preview | Finished | Failed | Cancelled
FINAL = (Finished, Failed, Cancelled)


@dataclass(frozen=True)
class Waiting:
    """A Job that has not begun: `position` of those that wait (1 is next), and in how many seconds it should start and be
    finished, by measured step times; None where nothing was measured yet."""

    job_id: str
    position: int
    start: float | None = None
    finish: float | None = None


@dataclass(frozen=True)
class Forecast:
    """Seconds from now until a Job's first step and until its picture, if nothing else comes."""

    start: float
    finish: float


@dataclass(frozen=True)
class Fault:
    """Why a Job failed: as its client would be told over HTTP."""

    name: str
    message: str
    status: int = 500
    retry_after: float | None = None


@dataclass(frozen=True)
class Job:
    """Params accepted from an ApiKey, with a Status; a row. Its pictures have the seeds params.seed, params.seed + 1, ...

    attached: ends with the connection of the client that waits for it, and is not resumed. keep: whether the pictures stay
    after their delivery. with_prompt: whether they may tell their prompt. start_by: the instant by which its first step must
    have begun. fingerprint: what must be equal for a picture to be this one again; empty where it may not be taken for another.
    home: the gateway that accepted it. attempts: deaths of a worker with this Job in its hands.
    """

    id: str
    service_id: str
    key_id: str
    params: Params
    status: Status
    created_at: float
    n: int = 1
    attached: bool = False
    keep: bool = True
    with_prompt: bool = True
    webhook_url: str = ""
    start_by: float | None = None
    fingerprint: str = ""
    home: str = ""
    attempts: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    steps_run: int | None = None
    queue_seconds: float | None = None
    inference_seconds: float | None = None
    notes: tuple[str, ...] = ()
    fault: Fault | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def pixel_steps(self) -> int:
        """Pixels times denoising steps of all its pictures: what is asked of the machine, whatever machine it is."""
        run = self.steps_run if self.steps_run is not None else self.params.steps
        return self.params.width * self.params.height * run * self.n


@dataclass(frozen=True)
class Limits:
    """What one key may do; 0 means no limit. concurrent bounds the Jobs that run at once (more wait), queued those that wait
    or run (more are refused). weight: its share of the machine beside other keys."""

    concurrent: int = 0
    queued: int = 0
    pictures_per_minute: int = 0
    pixel_steps_per_day: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Quota:
    """How much of a limit is left: `remaining` of `limit` in a window of `window` seconds, more in `reset` seconds."""

    name: str
    limit: int
    window: int
    remaining: int
    reset: float


@dataclass(frozen=True)
class Service:
    """An endpoint with a SERVICE_ID that serves one or more models; the first is its default. A row with none stands for all
    that the server runs."""

    id: str
    name: str
    models: tuple[str, ...]
    owner: str
    created_at: float


@dataclass(frozen=True)
class ApiKey:
    """A key of one Service, without its secret. `public_id` and `last4` are what may be shown."""

    public_id: str
    service_id: str
    name: str
    last4: str
    owner: str
    role: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    limits: Limits | None = None  # its own; the server's where there are none


@dataclass(frozen=True)
class PictureRow:
    """One picture file with its parameters, apart from the Job that made it. `key` names the file in the Gallery. words: the
    beginning of its prompt in small letters, for who searches."""

    id: str
    job_id: str
    service_id: str
    key: str
    width: int
    height: int
    bytes: int
    sha256: str
    parameters: dict
    created_at: float
    place: int = 0  # among the pictures of its Job
    model: str = ""
    key_id: str = ""
    seed: int = 0
    words: str = ""
    starred: bool = False


@dataclass(frozen=True)
class Session:
    """A person signed in to the dashboard. csrf is what unsafe calls must repeat in a header."""

    id: str
    csrf: str
    agent: str
    created_at: float
    last_seen_at: float
    expires_at: float


@dataclass(frozen=True)
class Call:
    """One request to the API, for the log. body: its fields without pictures, where they may be kept."""

    id: str
    at: float
    service_id: str
    key_id: str
    method: str
    route: str
    status: int
    ms: float
    model: str = ""
    job_id: str | None = None
    error: str | None = None
    body: dict | None = None


@dataclass(frozen=True)
class Licence:
    """What a model's licence is and what it asks of whoever serves the model to others.

    One with `asks` binds a host, who accepts it once, in this `version`. `notice` is the line that copies must carry,
    `badge` what users must be shown; empty where nothing is asked.
    """

    name: str
    version: str = ""
    url: str | None = None
    asks: tuple[str, ...] = ()
    notice: str = ""
    badge: str = ""


UNKNOWN_LICENCE = Licence("unknown")


@dataclass(frozen=True)
class Acceptance:
    """That the operator accepted a licence, in a version, for a model."""

    model: str
    licence: str
    version: str
    accepted_at: float


@dataclass(frozen=True)
class Message:
    """News of a Job on its way to a URL; every attempt sends the same id and the same body (JSON text).

    next_at: when it is due; lease_until: until when one who delivers it has it for himself. failed_at: given up.
    """

    id: str
    job_id: str
    service_id: str
    url: str
    event: str
    body: str
    created_at: float
    attempts: int
    next_at: float
    lease_until: float | None = None
    delivered_at: float | None = None
    failed_at: float | None = None
    last_status: int | None = None
    last_error: str | None = None

    @property
    def state(self) -> str:
        """`waiting`, `delivered` or `given up`."""
        return "delivered" if self.delivered_at is not None else "given up" if self.failed_at is not None else "waiting"


@dataclass(frozen=True)
class WebhookSecret:
    """What signs a service's messages (`whsec_...`). A retired one still signs for a while, beside the present one."""

    id: str
    service_id: str
    secret: str = field(repr=False)
    created_at: float
    retired_at: float | None = None


@dataclass(frozen=True)
class ModelCard:
    """What a model is and what may be asked of it.

    path is the diffusers folder or single file on this machine, or None while the weights are not here;
    `words`, where given, is all that a small demonstration model understands, and `hint` says so to a person.
    parameters counts the weights of all nets and disk_bytes what a pull brings, both 0 where unknown; gated is
    whether the hub asks to agree on a page and for a token first.
    """

    name: str
    family: str
    path: str | None
    hub_id: str | None = None
    default_side: int = 512
    max_side: int = 2048
    default_steps: int = 30
    min_steps: int = 10
    max_steps: int = 50
    default_cfg: float = 7.0
    licence: Licence = UNKNOWN_LICENCE
    gated: bool = False
    parameters: int = 0
    disk_bytes: int = 0
    words: frozenset[str] = frozenset()
    hint: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoraCard:
    """What a LoRA file is, by its head alone: the families whose models it may be for (both, where it changes text encoders
    alone), its format (`kohya` or `diffusers`), its largest rank, its bytes. `fault` says why it cannot be used, or is empty."""

    name: str
    families: tuple[str, ...] = ()
    format: str = ""
    rank: int = 0
    bytes: int = 0
    fault: str = ""
    version: str = ""  # another file under the same name has another


@dataclass(frozen=True)
class WorkerState:
    """What a Worker is doing: status is `starting`, `loading`, `ready`, `stalled` (it does not answer) or `failed`; of the
    last two `error` says why.

    loaded: the models in memory; `memory` has the bytes of their weights, in the same order. loading: the one that comes.
    preparing: models in memory whose backend is still to be measured.
    """

    status: str
    loaded: tuple[str, ...] = ()
    memory: tuple[int, ...] = ()
    loading: str = ""
    device: str = ""
    dtype: str = ""
    error: str = ""
    preparing: tuple[str, ...] = ()
