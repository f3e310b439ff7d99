"""The loop: Params in, Events out. One thread owns it and the nets."""

from __future__ import annotations

import queue
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from darkroom.engine.cost import CostModel
from darkroom.engine.hardware import is_fatal
from darkroom.engine.messages import Cancel, Load, Loaded, LoadFailed, LoadPart, Message, Prepared, Stop, Submit, Unload
from darkroom.engine.residents import RETRY_SECONDS, Residents
from darkroom.engine.runner import Runner
from darkroom.engine.sample import Batch, BatchKey, Sample
from darkroom.engine.scheduler import Scheduler
from darkroom.errors import DarkroomError
from darkroom.types import Cancelled, Event, Failed, Finished, Loading, Params, Preview, Progress, Queued

log = structlog.get_logger("engine")

SWITCH_PATIENCE = 5.0  # seconds that a model's new backend waits for its jobs to end before newcomers wait for it
NOBODY = ""  # the job of a Failed that is still to be given to one
NOT_FINITE = Failed(NOBODY, "not_finite", "the model gave numbers that are not finite (NaN); other parameters may help")


class Engine:
    """Samples of one or more models, stepped together where they may. `put` is for any thread, all else for the owner.

    started is called with a job's id before the nets first touch it, so that whoever watches this process knows which
    jobs were in its hands when it died.
    """

    def __init__(
        self, residents: Residents, cost: CostModel, max_rows: int = 16, exact: bool = False,
        started: Callable[[str], None] = lambda job_id: None, clock: Callable[[], float] = time.perf_counter,
        inbox: queue.SimpleQueue[Message] | None = None,
    ):  # fmt: skip
        self.scheduler = Scheduler(cost, max_rows, exact)
        self.residents = residents
        residents.report_to(self.put)
        self._cost = cost
        self._decode_cap = 1 if exact else max_rows // 2
        self._started = started
        self._clock = clock
        self._inbox = inbox or queue.SimpleQueue()
        self._waiting: defaultdict[str, list[Submit]] = defaultdict(list)  # by model, for it to come into memory
        self._finishing: list[Sample] = []  # denoised, not yet decoded
        self._flights: dict[tuple[BatchKey, Params], Sample] = {}  # all of those, and the scheduler's, by what makes their picture
        self._aboard: dict[str, Sample] = {}  # by job
        self._prepared: dict[str, tuple[Prepared, float]] = {}  # by model, and when it came
        self._events: list[Event] = []
        self._stopped = False

    def put(self, message: Message) -> None:
        self._inbox.put(message)

    def run(self, emit: Callable[[list[Event]], None]) -> None:
        """Step until a Stop arrives; sleeps while there is nothing to do."""
        while not self._stopped:
            emit(self.step(wait=not self.busy))

    @property
    def busy(self) -> bool:
        return bool(len(self.scheduler) or self._finishing or self.residents.waits_for_room or self._prepared)

    @property
    def idle(self) -> bool:
        """Whether there is neither a job nor a load; any thread may ask."""
        return not self.busy and self.residents.loading is None

    def step(self, wait: bool = False) -> list[Event]:
        """One turn; with `wait` it sleeps until a message comes. Returns the news of all jobs."""
        self._take_inbox(wait)
        self._call_in()
        batch = self.scheduler.schedule(self._clock())
        seconds = self._denoise(batch) if batch else 0.0
        self._finish(self._most_to_decode(seconds))
        events, self._events = self._events, []
        return events

    def _take_inbox(self, wait: bool) -> None:
        try:
            message = self._inbox.get(block=wait)
            while True:
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, message: Message) -> None:
        match message:
            case Submit(job_id, params, _, _):
                self._events.append(Queued(job_id))
                self._waiting[params.model].append(message)
            case Cancel(job_id):
                self._cancel(job_id)
            case Load(model):
                self.residents.want(model)
            case Unload(model):
                self.residents.unload(model, self._busy_models() | {name for name, jobs in self._waiting.items() if jobs})
            case LoadPart(model, part):
                self._events += [Loading(job.job_id, part) for job in self._waiting[model]]
            case Loaded():
                self.residents.settle(message)
            case LoadFailed(model, why):
                self.residents.settle(message)
                line = f"the model could not be loaded: {why}"
                self._events += [Failed(job.job_id, "model_unavailable", line, 503, RETRY_SECONDS) for job in self._waiting.pop(model, [])]
            case Prepared(model):
                self._prepared[model] = message, self._clock()
            case Stop():
                self._stopped = True

    def _call_in(self) -> None:
        """Let those in whose model is in memory; ask for the models of the rest, and begin to load one if there is room."""
        self._switch_backends()
        for model in [model for model, jobs in self._waiting.items() if jobs]:
            if model not in self.residents:
                self.residents.want(model)
            elif not self.residents.holds_back(model) and not self._switch_is_overdue(model):
                for job in self._waiting.pop(model):
                    self._try_to_admit(job)
        if self.residents.waits_for_room:
            self.residents.advance(self._busy_models())

    def _switch_backends(self) -> None:
        """Measure the graphs that have come and take them where they are faster: while nobody wants a picture, or when they have
        waited long enough, once no job of their model is under way."""
        if not self._prepared:
            return
        busy = self._busy_models()
        wanted = bool(busy) or any(jobs and model in self.residents for model, jobs in self._waiting.items())
        for model in list(self._prepared):
            if not wanted or (self._switch_is_overdue(model) and model not in busy):
                prepared, _ = self._prepared[model]
                if self.residents.holds(model, prepared.runner()):
                    self._switch(model, prepared)
                del self._prepared[model]  # not before: who asks meanwhile must not take the engine for idle

    def _switch(self, model: str, prepared: Prepared) -> None:
        try:
            fast = prepared.settle()
        except Exception as error:
            if is_fatal(error):
                raise
            log.error("a backend could not be measured", model=model, error=repr(error))
            fast = None
        self.residents.runner(model).switch(fast)
        if fast is not None:
            self._cost.forget(model)

    def _switch_is_overdue(self, model: str) -> bool:
        """Whether newcomers of a model must wait, so that its jobs end and its backend can change."""
        return model in self._prepared and self._clock() - self._prepared[model][1] > SWITCH_PATIENCE

    def _busy_models(self) -> set[str]:
        return {sample.key.model for sample in (*self.scheduler.samples(), *self._finishing)}

    def _try_to_admit(self, job: Submit) -> None:
        try:
            self._admit(job)
        except Exception as error:
            if is_fatal(error):
                raise
            self._events.append(replace(_fault(error, [job.job_id]), job_id=job.job_id))

    def _admit(self, job: Submit) -> None:
        params = job.params
        runner = self.residents.runner(params.model)
        steps, dtype = len(runner.family.plan(params).table), str(runner.family.dtype).removeprefix("torch.")
        key = BatchKey(params.model, params.height, params.width, dtype, runner.lora_keys(params.loras))
        rows = 2 if params.cfg > 1 else 1
        twin = self._flights.get((key, params))
        if twin is not None:  # the same picture is being made: wait for it
            return self._board(job.job_id, twin)
        sample = Sample(job.job_id, params, key, steps, rows, arrived=self._clock(), party=job.party, weight=job.weight)
        self._flights[key, params] = sample
        self._board(job.job_id, sample)
        if steps:
            self.scheduler.add(sample)
        elif self._prepare(sample):
            self._finishing.append(sample)

    def _board(self, job_id: str, sample: Sample) -> None:
        sample.jobs[job_id] = self._clock()
        self._aboard[job_id] = sample
        if sample.started is not None:
            self._started(job_id)

    def _land(self, sample: Sample) -> None:
        """The Sample is gone, whatever became of it."""
        del self._flights[sample.key, sample.params]
        for job_id in sample.jobs:
            del self._aboard[job_id]

    def _cancel(self, job_id: str) -> None:
        if self._leave(job_id) or self._stop_waiting(job_id):
            self._events.append(Cancelled(job_id))

    def _leave(self, job_id: str) -> bool:
        """A Sample that nobody waits for any more is taken out, whatever it does."""
        sample = self._aboard.get(job_id)
        if sample is None:
            return False
        if len(sample.jobs) == 1:
            self._land(sample)
            self.scheduler.cancel(sample.id)
            self._finishing = [other for other in self._finishing if other is not sample]
        else:
            del sample.jobs[job_id], self._aboard[job_id]
        return True

    def _stop_waiting(self, job_id: str) -> bool:
        for model, jobs in self._waiting.items():
            left = [job for job in jobs if job.job_id != job_id]
            if len(left) < len(jobs):
                self._waiting[model] = left
                if not left:
                    self.residents.forget(model)
                return True
        return False

    def _denoise(self, batch: Batch) -> float:
        """One step of the batch; returns its seconds. Whoever cannot be prepared fails alone."""
        for sample in batch.samples:
            if not sample.prepared and not self._prepare(sample):
                self.scheduler.cancel(sample.id)
                batch = Batch(tuple(other for other in batch.samples if other is not sample))
        if not batch.samples:
            return 0.0
        start = self._clock()
        if not self._guard(batch.samples, lambda: self._runner(batch.key).denoise(batch)):
            return self._separate(batch)
        seconds = self._clock() - start
        self._finishing += self.scheduler.settle(batch, seconds)
        for sample in batch.samples:
            self._events += [Progress(job_id, sample.step, sample.steps) for job_id in sample.jobs]
            self._preview(sample)
        return seconds

    def _preview(self, sample: Sample) -> None:
        """A small picture, where one is due. None comes after the last step: then the picture itself does."""
        every = sample.params.preview_every
        if not every or sample.step % every or not sample.remaining:
            return
        try:
            picture = self._runner(sample.key).preview(sample)
            self._events += [Preview(job_id, sample.step, picture) for job_id in sample.jobs]
        except Exception as error:  # the picture is worth more than its preview
            if is_fatal(error):
                raise
            log.warning("a preview could not be made", job=sample.id, error=repr(error))

    def _separate(self, batch: Batch) -> float:
        """After a pass that failed: a Sample that was alone is out, the others go on, each alone."""
        for sample in batch.samples:
            sample.alone = True
            if len(batch.samples) == 1:
                self.scheduler.cancel(sample.id)
        return 0.0

    def _prepare(self, sample: Sample) -> bool:
        for job_id in sample.jobs:
            self._started(job_id)
        sample.started = self._clock()
        runner = self._runner(sample.key)
        return self._guard([sample], lambda: runner.prepare(sample, runner.family.plan(sample.params)))

    def _most_to_decode(self, step_seconds: float) -> int:
        """How many pictures to decode in this turn: while others run, no more than take about a step, but one at least."""
        if not self._finishing or not len(self.scheduler):
            return self._decode_cap
        fits = int(step_seconds / max(self._cost.decode_seconds(self._finishing[0].key), 1e-6))
        return max(1, min(self._decode_cap, fits))

    def _finish(self, most: int) -> None:
        """Decode the oldest finished Samples of one size together."""
        if not self._finishing:
            return
        key = self._finishing[0].key
        group = [s for s in self._finishing if s.key == key][:most]
        if any(s.alone for s in group):
            group = group[:1]
        self._finishing = [s for s in self._finishing if s not in group]
        if not self._guard(group, lambda: self._decode(group)):
            for sample in group:
                sample.alone = True
            self._finishing = (group if len(group) > 1 else []) + self._finishing

    def _decode(self, group: list[Sample]) -> None:
        start = self._clock()
        pictures = self._runner(group[0].key).decode(group)
        end = self._clock()
        self._cost.observe_decode(group[0].key, len(group), end - start)
        for sample, pixels in zip(group, pictures, strict=True):
            if pixels is None:
                self._fail(sample, NOT_FINITE)
            else:
                self._deliver(sample, pixels.tobytes(), end)

    def _deliver(self, sample: Sample, pixels: bytes, now: float) -> None:
        params, note = sample.params, sample.state.note
        for job_id, came in sample.jobs.items():
            started = max(came, sample.started or came)
            self._events.append(Finished(job_id, pixels, params.width, params.height, sample.steps, started - came, now - started, note))
        self._land(sample)

    def _runner(self, key: BatchKey) -> Runner:
        return self.residents.runner(key.model)

    def _guard(self, samples: Sequence[Sample], work: Callable[[], None]) -> bool:
        """Do the work; an exception ends a Sample that was alone, and nobody else. Returns whether it went well. One after which the
        device does nothing more for this process ends the process: a new one tries the jobs again."""
        try:
            work()
            return True
        except Exception as error:
            if is_fatal(error):
                raise
            fault = _fault(error, [sample.id for sample in samples])
            if len(samples) == 1:
                self._fail(samples[0], fault)
            return False

    def _fail(self, sample: Sample, fault: Failed) -> None:
        self._events += [replace(fault, job_id=job_id) for job_id in sample.jobs]
        self._land(sample)


def _fault(error: Exception, jobs: list[str]) -> Failed:
    """What a client is told of an exception. One that is not ours goes to the log: its text is not for clients."""
    if isinstance(error, DarkroomError):
        return Failed(NOBODY, error.name, str(error), error.status, error.retry_after)
    log.error("a pass failed", jobs=jobs, error=repr(error), trace="".join(traceback.format_exception(error)))
    return Failed(NOBODY, "engine_error", f"the engine could not make this picture ({type(error).__name__})")
