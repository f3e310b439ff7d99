"""A Worker in a child process of the gateway. No torch here.

When the child dies, the jobs that its nets had touched are suspects: they are tried again, each alone in a fresh child, so
that one that kills its worker takes no other along; then the rest goes on as if nothing had been.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import structlog

from darkroom.engine.cost import CostModel
from darkroom.engine.forecast import Ahead, forecast
from darkroom.engine.messages import Cancel, Load, Stop, Submit, Unload
from darkroom.engine.sample import BatchKey, LoraKey
from darkroom.models.catalogue import pull_command
from darkroom.models.loras import LORAS
from darkroom.settings import Settings
from darkroom.types import FINAL, Began, Cancelled, Event, Failed, Finished, Forecast, Loading, ModelCard, Params, Progress, Queued, Retrying, WorkerState
from darkroom.worker.watchdog import TICKS, Beat, Watchdog
from darkroom.worker.wire import Costs, Order, Sender, Started

log = structlog.get_logger("worker")

MAX_LOAD_DEATHS = 3  # deaths in a row while a model loads: then it is the model's fault, and trying on helps nobody
REVIVE_SECONDS = 30.0  # after such a failure, until the next try, of which each waits twice as long as the one before
MAX_REVIVE_SECONDS = 480.0
STDERR = 2  # the file descriptor: standard output is not for what a library in the child may print
START = ""  # stands for a model's name while the child has not begun to load one
# Times that a thread of libgomp looks whether the others are there before it sleeps: enough for quiet cores to lose nothing (a
# step of demo-xl at 512 x 512 takes 77 ms with this and with the default), and few enough for busy ones, where whoever is waited
# for has no core (146 ms beside one busy process, 286 to 1,963 with the default).
SPINS = "4000"
STOP_SECONDS = 10.0  # that a child has to end by itself


@dataclass
class _Entry:
    """A job in the gateway's book: sent to the child or not, touched by its nets or not; left when nobody waits for it.
    deaths: of a child with this job in its nets' hands."""

    params: Params
    party: str = ""
    weight: float = 1.0
    deaths: int = 0
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    arrived: float = field(default_factory=time.monotonic)
    left: bool = False
    sent: bool = False
    touched: bool = False
    step: int = 0


class LocalWorker:
    """Runs an Engine for these models in a child process; see `worker/protocol.py` for the calls."""

    def __init__(self, cards: Sequence[ModelCard], settings: Settings, prepare: bool = True):
        """prepare: whether new models may be converted beside the work; what ends with a picture does without."""
        self._prepare = prepare
        self._cards = {card.name: card for card in cards}
        self._settings = settings
        self._costs = CostModel()
        self._jobs: OrderedDict[str, _Entry] = OrderedDict()
        self._state = WorkerState("starting")
        self._process: subprocess.Popen[bytes] | None = None
        self._sender: Sender | None = None
        self._watchdog: Watchdog | None = None
        self._hears = False  # whether the child takes messages yet
        self._revive_seconds = REVIVE_SECONDS
        self._load_deaths: Counter[str] = Counter()
        self._failures: dict[str, tuple[float, str]] = {}  # models (or START) that cannot be loaded: when and why
        self._load: tuple[Any, str] | None = None  # what is being loaded, by which child
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if any(card.path for card in self._cards.values()):
            self._spawn()
        else:
            self._fail(START, self._missing(next(iter(self._cards.values()))))

    async def submit(self, job_id: str, params: Params, party: str = "", weight: float = 1.0, attempts: int = 0) -> AsyncIterator[Event]:
        assert job_id not in self._jobs, f"job {job_id} is here already"
        refusal = self._refusal(job_id, params, attempts)
        if refusal:
            yield refusal
            return
        entry = self._jobs[job_id] = _Entry(params, party, weight, attempts)
        self._feed()
        try:
            while True:
                event = await entry.events.get()
                yield event
                if isinstance(event, FINAL):
                    return
        finally:
            self.cancel(job_id)

    def cancel(self, job_id: str) -> None:
        entry = self._jobs.get(job_id)
        if entry is None:
            return
        entry.left = True
        if entry.sent:
            self._send(Cancel(job_id))
        else:
            self._settle(Cancelled(job_id))

    def load(self, model: str) -> None:
        self._send(Load(model))

    def unload(self, model: str) -> None:
        self._send(Unload(model))

    def costs(self) -> dict[str, dict[str, float]]:
        return self._costs.table()

    def state(self) -> WorkerState:
        if self._watchdog is not None and self._watchdog.in_doubt and self._state.status != "failed":
            limit = self._settings.worker_timeout
            return replace(self._state, status="stalled", error=f"the worker does not answer; it is ended after {limit:g} s without a sign of life")
        if self._state.status == "ready" and not self._state.loaded and self._failures:
            return replace(self._state, status="failed", error="; ".join(why for _, why in self._failures.values()))
        return self._state

    def backlog_seconds(self) -> float:
        return sum(self._seconds_left(entry) for entry in self._jobs.values())

    def forecast(self, others: Sequence[tuple[str, Params, str, float]] = ()) -> dict[str, Forecast]:
        mine = [self._ahead(job_id, entry) for job_id, entry in self._jobs.items() if not entry.left]
        # one that was given to it since the others were looked up stands in both
        theirs = [self._ahead(job_id, _Entry(params, party, weight)) for job_id, params, party, weight in others if job_id not in self._jobs]
        return forecast([*mine, *theirs], self._costs, self._settings.max_rows, self._settings.exact)

    def give_up(self) -> None:
        """End every job with a Failed, and take no more: what there is to say when the server shuts down."""
        self._closing = True
        for job_id in list(self._jobs):
            self._settle(_shutting_down(job_id))

    async def close(self) -> None:
        self.give_up()
        self._send(Stop())
        if self._process is not None:
            waiting = asyncio.get_running_loop().run_in_executor(None, self._wait_or_kill, self._process)
            await waiting

    # the child's life

    def _spawn(self) -> None:
        """Start a child that shares one end of a socket pair, and a thread that reads the other."""
        settings = self._settings
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "darkroom.worker.child", str(theirs.fileno())]
            # a session of its own: Ctrl-C is for the gateway, which then ends the child in good order
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
                env=_environment(),
            )
        connection = Connection(ours.detach())
        self._sender = Sender(connection)
        self._watchdog = Watchdog(self._process.pid)
        cards = tuple(card for card in self._cards.values() if card.path)
        self._hears = False
        self._become(WorkerState("loading"))
        preload = tuple(card.name for card in cards if settings.preload and card.name not in self._failures)
        data = settings.data_dir
        self._send(Order(
            cards, settings.device, settings.dtype, settings.threads, settings.max_rows, settings.exact, data / "costs.json",
            settings.memory_budget, preload, data / LORAS, settings.max_lora_bytes, settings.backend, settings.graphs, self._prepare, settings.log_level,
            self._tick_seconds,
        ))  # fmt: skip
        threading.Thread(target=self._read, args=(connection, self._process), daemon=True).start()
        self._look_after(self._process)

    @property
    def _tick_seconds(self) -> float:
        return self._settings.worker_timeout / TICKS

    def _look_after(self, process: subprocess.Popen[bytes]) -> None:
        """Look at the child now and then as long as it is ours, and end one that hangs: what it had in hand is tried again."""
        assert self._loop is not None
        self._loop.call_later(self._tick_seconds, self._tick, process)

    def _tick(self, process: subprocess.Popen[bytes]) -> None:
        if process is not self._process or self._closing or self._watchdog is None:
            return
        loading = bool(self._state.loading) or not self._state.device
        self._watchdog.tick(any(entry.sent for entry in self._jobs.values()), loading)
        if self._watchdog.hangs:
            log.error("the worker hangs and is ended", seconds=self._settings.worker_timeout)
            process.kill()
        else:
            self._look_after(process)

    def _read(self, connection: Connection, process: subprocess.Popen[bytes]) -> None:
        """Thread: messages of one child, until its end of the socket closes."""
        assert self._loop is not None
        try:
            while True:
                self._loop.call_soon_threadsafe(self._take, process, connection.recv())
        except (EOFError, OSError):
            code = process.wait()
            connection.close()
            self._call_soon(self._died, process, code)
        except Exception:  # the loop is closed, or what came cannot be read: no use for this child any more
            process.kill()
            self._call_soon(self._died, process, process.wait())

    def _call_soon(self, *args: Any) -> None:
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(*args)
        except RuntimeError:
            return  # the loop is closed, and with it everyone who would want to know

    def _died(self, process: subprocess.Popen[bytes], code: int) -> None:
        if process is not self._process or self._closing:
            return
        self._drop_child()
        if self._state.status == "failed" and code == 0:  # it said why, and went
            return self._fail(START, self._state.error)
        log.error("the worker ended unexpectedly", code=code, loading=self._state.loading)
        self._suspect()
        if self._load is not None:
            model = self._load[1]
            self._load_deaths[model] += 1
            if self._load_deaths[model] >= MAX_LOAD_DEATHS:
                self._fail(model, f"the worker ended {self._load_deaths[model]} times while it loaded the model (exit code {code}; out of memory?)")
        if START not in self._failures:
            self._spawn()

    def _drop_child(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._process = self._sender = self._watchdog = None
        self._hears = False

    def _suspect(self) -> None:
        """Mark who was in the dead child's hands; who was there too often is out, and so is who has left."""
        for job_id, entry in list(self._jobs.items()):
            touched = entry.touched
            entry.deaths += touched
            entry.sent = entry.touched = False
            entry.step = 0
            if entry.left:
                self._settle(Cancelled(job_id))
            elif self._spent(entry.deaths):
                self._settle(_worker_died(job_id, entry.deaths))
            elif touched:
                self._tell(Retrying(job_id, entry.deaths))

    def _spent(self, deaths: int) -> bool:
        return deaths >= self._settings.max_attempts

    def _become(self, state: WorkerState) -> None:
        """Note what the child does; a load (its start counts as one) has `load_timeout` seconds."""
        assert self._loop is not None
        self._state = state
        for model in state.loaded:
            self._load_deaths.pop(model, None)
            self._failures.pop(model, None)
        if state.loaded:
            self._revive_seconds = REVIVE_SECONDS
        load = (self._process, state.loading) if state.loading or not state.device else None
        if load != self._load:
            self._load = load
            if load is not None:
                self._loop.call_later(self._settings.load_timeout, self._check_load, load)

    def _check_load(self, load: tuple[Any, str]) -> None:
        if load == self._load and load[0] is self._process:
            self._load = None  # so that its end, by our hand, is not taken for one in the load
            self._fail(load[1], f"the model was not loaded after {self._settings.load_timeout:g} s")
            self._process.kill()  # type: ignore[union-attr]

    def _fail(self, model: str, why: str) -> None:
        """A model cannot be loaded, or with START none can: its jobs fail, and those that come in the next seconds."""
        log.error("no model can be loaded" if model == START else "a model is given up", model=model, error=why)
        self._failures[model] = time.monotonic(), why
        if model == START:
            self._state = WorkerState("failed", error=why)
        if any(card.path for card in self._cards.values()):
            assert self._loop is not None
            self._loop.call_later(self._revive_seconds, self._revive, model)
            self._revive_seconds = min(MAX_REVIVE_SECONDS, 2 * self._revive_seconds)
        for job_id, entry in list(self._jobs.items()):
            if model in (START, entry.params.model):
                self._settle(self._load_failure(job_id, why))

    def _revive(self, model: str) -> None:
        """Try again by itself: behind a balancer that asks /readyz no job would come to start it. While another model is in memory
        only a job does, for a load that ends the worker would take that one's jobs along."""
        if self._closing or self._state.loaded or self._failures.pop(model, None) is None:
            return
        self._load_deaths.pop(model, None)
        if self._process is None:
            self._spawn()
        elif model != START:
            self.load(model)

    @staticmethod
    def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # messages

    def _take(self, process: subprocess.Popen[bytes], message: Any) -> None:
        if process is not self._process:
            return
        if self._watchdog is not None:
            self._watchdog.hear(message)
        match message:
            case Beat():
                return
            case WorkerState():
                self._hears = True
                self._become(message)
                self._feed()
            case Started(job_id):
                self._tell(Began(job_id))
            case Costs(table):
                self._costs = CostModel()  # what the child has forgotten must not stay
                self._costs.load(table)
            case _:
                self._settle(message) if isinstance(message, FINAL) else self._tell(message)

    def _tell(self, event: Event) -> None:
        entry = self._jobs.get(event.job_id)
        if entry is None:
            return
        match event:
            case Began():
                entry.touched = True
            case Progress():
                entry.step = event.step
            case Queued() | Loading() if entry.touched:
                return  # Began is sent at once and overtakes those of the same turn, which are no news any more
        entry.events.put_nowait(event)

    def _settle(self, event: Event) -> None:
        """A job's one final event; the next suspect may come in."""
        entry = self._jobs.get(event.job_id)
        if entry is not None and isinstance(event, Finished):  # the child knows nothing of what passed before it had the job
            waited = time.monotonic() - entry.arrived - event.inference_seconds
            event = replace(event, queue_seconds=max(0.0, waited))
        self._tell(event)
        self._jobs.pop(event.job_id, None)
        self._feed()

    def _feed(self) -> None:
        """Send what may go to the child: everything, or while there are suspects one of them and nothing else."""
        if not self._hears or self._closing:
            return
        suspects = [job_id for job_id, entry in self._jobs.items() if entry.deaths]
        if suspects and any(entry.sent for entry in self._jobs.values()):
            return
        for job_id in suspects[:1] or list(self._jobs):
            entry = self._jobs[job_id]
            if not entry.sent:
                entry.sent = True
                self._send(Submit(job_id, entry.params, entry.party, entry.weight))

    def _send(self, message: Any) -> None:
        if self._sender is not None:
            self._sender.send(message)

    # answers without a child

    def _refusal(self, job_id: str, params: Params, attempts: int) -> Failed | None:
        card = self._cards.get(params.model)
        assert card is not None, f"this worker does not run {params.model}"
        if self._closing:
            return _shutting_down(job_id)
        if self._spent(attempts):
            return _worker_died(job_id, attempts)
        if card.path is None:
            return Failed(job_id, "model_unavailable", self._missing(card), 503, retry_after=60)
        for model in (START, params.model):
            when, why = self._failures.get(model, (0.0, ""))
            if why and time.monotonic() - when < REVIVE_SECONDS:
                return self._load_failure(job_id, why)
            if self._failures.pop(model, None):
                self._load_deaths.pop(model, None)
        if self._process is None:
            self._spawn()
        return None

    def _missing(self, card: ModelCard) -> str:
        bring = f"bring them with: {pull_command(card, public=True)}, then start the server again"
        return f"the weights of {card.name} are not here; {bring}"

    @staticmethod
    def _load_failure(job_id: str, why: str) -> Failed:
        return Failed(job_id, "model_unavailable", f"the model could not be loaded: {why}", 503, retry_after=REVIVE_SECONDS)

    def _seconds_left(self, entry: _Entry) -> float:
        ahead = self._ahead("", entry)
        return self._costs.job_seconds(ahead.key, ahead.rows, ahead.steps)

    def _ahead(self, job_id: str, entry: _Entry) -> Ahead:
        params = entry.params
        loras = tuple(LoraKey(lora.name, lora.scale, "") for lora in params.loras)
        key, rows = BatchKey(params.model, params.height, params.width, loras=loras), 2 if params.cfg > 1 else 1
        served = entry.step * self._costs.step_seconds(key, rows)
        waited = max(0.0, time.monotonic() - entry.arrived - served)
        steps = max(0, _steps_to_run(params) - entry.step)
        return Ahead(job_id, key, rows, steps, entry.party, entry.weight, waited, begun=entry.step > 0)


def _steps_to_run(params: Params) -> int:
    """As SDXL counts them; SD 3.x may run one more."""
    control = params.control_strength or 0
    return 0 if control == 1 else max(1, int(params.steps * (1 - control)))


def _environment() -> dict[str, str]:
    """That of the child: as ours, with a bound on how long PyTorch's threads spin for each other where nothing else is asked for."""
    asked = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    return dict(os.environ) if asked else os.environ | {"GOMP_SPINCOUNT": SPINS}


def _shutting_down(job_id: str) -> Failed:
    return Failed(job_id, "shutting_down", "the server is shutting down; send the request again", 503, retry_after=5)


def _worker_died(job_id: str, deaths: int) -> Failed:
    times = "once" if deaths == 1 else f"{deaths} times"
    return Failed(job_id, "worker_died", f"the worker died {times} on this job, as often as a job is tried (setting max_attempts)")
