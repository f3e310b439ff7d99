"""A new model begins with PyTorch; its graphs are made beside the work and taken between its jobs."""

from __future__ import annotations

import gc
import itertools
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.engine.backend import CHOICE, EAGER, OPENVINO, Backends, Fast, graphs_folder, read_choice
from darkroom.engine.convert import Task
from darkroom.engine.cost import CostModel
from darkroom.engine.engine import SWITCH_PATIENCE, Engine
from darkroom.engine.messages import Message, Prepared, Submit, Unload
from darkroom.engine.passes import STEP
from darkroom.engine.preparation import Preparation
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.types import FINAL, Event, Finished, ModelCard

from .conftest import Lab, psnr
from .test_parity import params

ROOM = 10**10  # bytes: no obstacle
TICK = 0.01  # seconds of an engine's clock at each look


@pytest.fixture(scope="module")
def card(checkpoint: Path) -> ModelCard:
    return ModelCard("tiny", "sdxl", path=str(checkpoint), default_side=128)


@pytest.fixture(scope="module")
def graphs(card: ModelCard, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of the lab's model, of which no choice is known; a folder to be copied."""
    root = tmp_path_factory.mktemp("graphs")
    Backends("auto", root, ROOM, threads=torch.get_num_threads()).convert(lab.family, card)
    return root


class Bench:
    """An engine that runs a model on PyTorch until what is put by `prepare` comes."""

    def __init__(self, lab: Lab):
        self.now = 0.0
        self.runner = Runner(lab.family, lab.loras, undecided=True)
        self.cost = CostModel()
        self.engine = Engine(Residents.of({"tiny": self.runner}), self.cost, clock=self.clock)
        self.events: list[Event] = []
        self.settled: list[int] = []  # how many events there were at each

    def clock(self) -> float:
        self.now += TICK
        return self.now

    def prepare(self, settle: Callable[[], Fast | None]) -> None:
        def settling() -> Fast | None:
            self.settled.append(len(self.events))
            return settle()

        self.engine.put(Prepared("tiny", weakref.ref(self.runner), settling))

    def step_until(self, met: Callable[[], bool], turns: int = 500) -> None:
        for _ in range(turns):
            if met():
                return
            self.events += self.engine.step()
        raise AssertionError(f"not so after {turns} turns")

    def finished(self) -> dict[str, np.ndarray]:
        found = [event for event in self.events if isinstance(event, FINAL)]
        assert all(isinstance(event, Finished) for event in found), found
        return {
            one.job_id: np.frombuffer(one.pixels, np.uint8).reshape(one.height, one.width, 3)
            for one in found
            if isinstance(one, Finished)
        }


@pytest.fixture
def bench(lab: Lab) -> Bench:
    return Bench(lab)


@pytest.fixture
def settle(card: ModelCard, lab: Lab, graphs: Path, tmp_path: Path) -> Callable[[], Fast | None]:
    """What takes the graphs, found faster."""
    root = Path(shutil.copytree(graphs, tmp_path / "graphs"))
    write_choice(graphs_folder(root, card), OPENVINO)
    return Backends("auto", root, ROOM, threads=torch.get_num_threads()).candidate(lab.family, card)


def write_choice(folder: Path, backend: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHOICE).write_text(f'{{"backend": "{backend}", "why": "it was faster"}}')


def test_jobs_on_both_sides_of_a_switch_get_their_pictures(
    bench: Bench, lab: Lab, settle: Callable[[], Fast | None]
) -> None:
    """Those under way finish on PyTorch, and the same prompt is encoded anew for the graphs."""
    wanted = params(width=192, height=128)
    (reference,) = lab.ours((0, wanted))
    bench.engine.put(Submit("before", wanted))
    bench.step_until(lambda: len(bench.events) > 3)
    bench.prepare(settle)
    bench.step_until(lambda: bool(bench.settled))
    assert list(bench.finished()) == ["before"], "it waited for the job"
    bench.engine.put(Submit("after", wanted))
    bench.step_until(lambda: len(bench.finished()) == 2)
    before, after = (bench.finished()[name] for name in ("before", "after"))
    assert np.array_equal(before, reference)
    assert psnr(after, reference) >= 50
    assert not np.array_equal(after, reference), "it never ran the graphs"


def test_a_steady_stream_of_jobs_waits_for_a_switch_that_is_overdue(bench: Bench) -> None:
    jobs = itertools.count()

    def submit() -> None:
        seed = next(jobs)
        bench.engine.put(Submit(str(seed), params(seed=seed)))

    submit()
    bench.step_until(lambda: len(bench.events) > 1)
    bench.prepare(lambda: None)
    came = bench.now
    while not bench.settled and bench.now < came + 20 * SWITCH_PATIENCE:
        if len(bench.engine.scheduler) < 2:
            submit()
        bench.events += bench.engine.step()
        assert not bench.settled or bench.now > came + SWITCH_PATIENCE, "it was not overdue"
    assert bench.settled, "newcomers kept it from its switch"
    count = next(jobs)
    bench.step_until(lambda: len(bench.finished()) == count)


def test_what_was_learnt_on_pytorch_is_forgotten(bench: Bench, settle: Callable[[], Fast | None]) -> None:
    bench.engine.put(Submit("a", params()))
    bench.step_until(lambda: len(bench.finished()) == 1)
    assert bench.cost.known
    bench.prepare(lambda: None)
    bench.step_until(lambda: bool(bench.settled))
    assert bench.cost.known, "the backend is the same"
    bench.prepare(settle)
    bench.step_until(lambda: len(bench.settled) == 2)
    assert not bench.cost.known


def test_room_for_graphs_is_counted_until_it_is_known_that_none_come(
    bench: Bench, settle: Callable[[], Fast | None], lab: Lab
) -> None:
    alone = Runner(lab.family, lab.loras).nbytes
    assert bench.runner.nbytes == 2 * alone
    assert bench.engine.residents.preparing == ("tiny",)
    bench.runner.switch(settle())
    assert bench.runner.nbytes == 2 * alone
    assert bench.engine.residents.preparing == ()
    other = Runner(lab.family, lab.loras, undecided=True)
    other.switch(None)
    assert other.nbytes == alone


def test_graphs_of_a_model_that_left_are_let_go(bench: Bench) -> None:
    bench.engine.put(Unload("tiny"))
    bench.prepare(lambda: None)
    bench.step_until(lambda: not bench.engine.busy, turns=3)
    assert not bench.settled


def test_an_error_in_a_measurement_leaves_the_model_on_pytorch(bench: Bench, lab: Lab) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    bench.prepare(fail)
    bench.engine.put(Submit("a", params()))
    bench.step_until(lambda: len(bench.finished()) == 1 and bool(bench.settled))
    assert np.array_equal(bench.finished()["a"], *lab.ours((0, params())))
    assert bench.engine.residents.preparing == ()


def test_graphs_are_measured_once_they_are_there(
    lab: Lab, card: ModelCard, graphs: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(graphs, tmp_path / "graphs"))
    backends = Backends("auto", root, ROOM, threads=torch.get_num_threads())
    folder = graphs_folder(root, card)
    assert backends.is_converted(lab.family, card)
    assert read_choice(folder) is None
    assert "Getting tiny ready (first time only)" in backends.foreseen(card, 1, "cpu", "float32").why
    fast = backends.candidate(lab.family, card)()
    choice = read_choice(folder)
    assert choice is not None
    assert "against" in choice.why
    assert (fast is not None) == (choice.backend == OPENVINO)
    assert (folder / f"{STEP}.xml").exists() == (choice.backend == OPENVINO)


def test_graphs_that_differ_are_refused_once_measured(
    lab: Lab, card: ModelCard, graphs: Path, tmp_path: Path
) -> None:
    """One whose step is that of other weights."""
    folder = graphs_folder(Path(shutil.copytree(graphs, tmp_path / "graphs")), card)
    weights = np.fromfile(folder / f"{STEP}.bin", np.uint8)
    (1.5 * weights[: len(weights) // 4 * 4].view(np.float32)).tofile(folder / f"{STEP}.bin")
    shutil.rmtree(folder / "compiled")
    backends = Backends("auto", tmp_path / "graphs", ROOM, threads=torch.get_num_threads())
    assert backends.candidate(lab.family, card)() is None
    choice = read_choice(folder)
    assert choice is not None
    assert choice.backend == EAGER


def test_who_begins_with_pytorch(lab: Lab, card: ModelCard, tmp_path: Path) -> None:
    """A new model on `auto`, where a second process has room to convert it."""
    modules = [one.module for one in lab.family.passes().values()]
    weights = sum(4 * weight.numel() for module in modules for weight in module.parameters())
    assert Backends("auto", tmp_path, 3 * weights).defers(lab.family, card)
    assert not Backends("auto", tmp_path, 3 * weights - 1).defers(lab.family, card)
    assert not Backends("auto", tmp_path, ROOM, exact=True).defers(lab.family, card)
    assert not Backends(EAGER, tmp_path, ROOM).defers(lab.family, card)
    assert not Backends(OPENVINO, tmp_path, ROOM).defers(lab.family, card)
    write_choice(graphs_folder(tmp_path, card), EAGER)
    assert not Backends("auto", tmp_path, ROOM).defers(lab.family, card)


class Host:
    """As much of an engine as preparation asks for."""

    def __init__(self) -> None:
        self.idle = True
        self.came = threading.Event()
        self.messages: list[Message] = []

    def put(self, message: Message) -> None:
        self.messages.append(message)
        self.came.set()


def preparation_of(root: Path, **times: float) -> Preparation:
    def task(card: ModelCard) -> Task:
        return Task(
            card=card,
            device="cpu",
            dtype="float32",
            graphs=root,
            budget=ROOM,
            threads=torch.get_num_threads(),
            log_level="info",
        )

    return Preparation(Backends("auto", root, ROOM, threads=torch.get_num_threads()), task, **times)


def test_a_model_is_converted_by_another_process_even_if_the_engine_is_never_idle(
    lab: Lab, card: ModelCard, tmp_path: Path
) -> None:
    host, runner = Host(), Runner(lab.family, lab.loras, undecided=True)
    host.idle = False
    preparation = preparation_of(tmp_path, patience=1.0)
    preparation.add(card, runner)
    preparation.start(host)
    assert host.came.wait(120)
    (message,) = host.messages
    assert isinstance(message, Prepared)
    assert message.runner() is runner
    assert (graphs_folder(tmp_path, card) / f"{STEP}.xml").exists()
    assert read_choice(graphs_folder(tmp_path, card)) is None, "the engine's thread measures"
    message.settle()
    assert read_choice(graphs_folder(tmp_path, card)) is not None


def test_a_model_whose_conversion_fails_is_not_tried_again(lab: Lab, card: ModelCard, tmp_path: Path) -> None:
    """Of a process that cannot load the model: it ends with an error, as it does where it crashes."""
    host, runner = Host(), Runner(lab.family, lab.loras, undecided=True)
    lost = ModelCard("tiny", "sdxl", path=str(tmp_path / "lost"))
    (tmp_path / "lost").mkdir()
    preparation = preparation_of(tmp_path, idle=0.0)
    preparation.add(lost, runner)
    preparation.start(host)
    assert host.came.wait(120)
    (message,) = host.messages
    assert isinstance(message, Prepared)
    assert message.settle() is None
    choice = read_choice(graphs_folder(tmp_path, lost))
    assert choice is not None
    assert choice.backend == EAGER
    assert "converted" in choice.why


def test_a_model_that_leaves_the_memory_is_let_go(
    lab: Lab, card: ModelCard, graphs: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(graphs, tmp_path / "graphs"))
    host, preparation = Host(), preparation_of(root, idle=0.0)
    gone, stays = (Runner(lab.family, lab.loras, undecided=True) for _ in range(2))
    preparation.add(card, gone)
    preparation.add(card, stays)
    left: Any = weakref.ref(gone)
    del gone
    gc.collect()
    assert left() is None, "preparation held it"
    preparation.start(host)
    assert host.came.wait(60)
    assert [message.runner() for message in host.messages if isinstance(message, Prepared)] == [stays]
