"""OpenVINO's graphs against the reference: the same pictures to a bound, chosen by measurement, kept on the disk."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom.engine.backend import CHOICE, COMPILE, EAGER, INT8, OPENVINO, Backends, Fast, graphs_folder, read_choice
from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.graphs import PARTIAL, Graph, open_graphs, turn
from darkroom.engine.int8 import see, worst_error
from darkroom.engine.passes import STEP, Pass
from darkroom.engine.race import settle_step
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.errors import Unsupported
from darkroom.types import ModelCard, Params

from .conftest import Lab, apart, photo, psnr, with_scheduler
from .lora_lab import changes, write_diffusers
from .sd3_lab import SD35_MEDIUM, SD3Lab, make_sd3
from .test_parity import params, strangers

ROOM = 10**10  # bytes: no obstacle


class FastLab:
    """A lab whose engine runs graphs."""

    def __init__(self, lab: Lab, folder: Path, backend: str = OPENVINO, root: Path | None = None, exact: bool = False):
        self.lab, self.card, self.exact = lab, ModelCard("tiny", lab.family.name, path=str(folder), default_side=128), exact
        root = root or folder.parent / "graphs"
        self.fast = Backends(backend, root, ROOM, exact=exact, threads=torch.get_num_threads()).accelerate(lab.family, self.card)
        self.graphs = graphs_folder(root, self.card, int8=backend == INT8)

    def engine(self) -> Engine:
        clock = iter(range(10**9))
        runner = Runner(self.lab.family, self.lab.loras, fast=self.fast)
        return Engine(Residents.of({"tiny": runner}), CostModel(), exact=self.exact, clock=lambda: next(clock) * 0.01)

    def ours(self, *submissions: tuple[int, Params]) -> list[np.ndarray]:
        return self.lab.ours(*submissions, engine=self.engine())


@pytest.fixture(scope="module")
def sdxl(lab: Lab, checkpoint: Path) -> FastLab:
    return FastLab(lab, checkpoint)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> FastLab:
    folder = make_sd3(tmp_path_factory.mktemp("sd3") / "tiny", t5=False, **SD35_MEDIUM)
    return FastLab(SD3Lab(folder), folder)


@pytest.fixture(params=["sdxl", "sd3"])
def labs(request: pytest.FixtureRequest) -> FastLab:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (256, 192), (192, 320), (512, 512)])
def test_pictures_agree_with_the_reference_alone_and_in_company(labs: FastLab, width: int, height: int) -> None:
    wanted = params(width=width, height=height)
    (reference,) = labs.lab.ours((0, wanted))
    (alone,) = labs.ours((0, wanted))
    crowd = labs.ours((2, wanted), *strangers(width, height))
    assert max(len(batch) for batch in labs.lab.batches if "0" in batch) >= 3, "it never had company"
    assert psnr(alone, reference) >= 50
    assert psnr(crowd[0], reference) >= 50
    assert apart(crowd[0], alone) <= 2


def test_graphs_in_exact_mode_are_bit_equal_in_company(labs: FastLab) -> None:
    exact, wanted = FastLab(labs.lab, Path(labs.card.path or ""), exact=True), params()
    assert np.array_equal(*exact.ours((0, wanted)), exact.ours((2, wanted), *strangers(128, 128))[0])


@pytest.mark.parametrize("changed", [{"cfg": 1.0}, {"negative_prompt": "a green circle"}, {"width": 200, "height": 136}])
def test_other_work_agrees_too(sdxl: FastLab, changed: dict[str, Any]) -> None:
    wanted = params(**changed)
    assert psnr(*sdxl.lab.ours((0, wanted)), *sdxl.ours((0, wanted))) >= 50


def test_image_to_image_agrees(labs: FastLab) -> None:
    wanted = params(width=192, height=128, image=photo(192, 128), control_strength=Decimal("0.5"))
    assert psnr(*labs.lab.ours((0, wanted)), *labs.ours((0, wanted))) >= 50


@pytest.mark.parametrize("method", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_other_methods_agree_too(sdxl: FastLab, checkpoint: Path, tmp_path: Path, method: str) -> None:
    """One that looks back at the step before, and one that draws noise: the step is part of the graph."""
    (tmp_path / "other").mkdir()
    other = with_scheduler(checkpoint, tmp_path / "other", {"_class_name": method})
    shutil.copytree(sdxl.graphs, graphs_folder(tmp_path, ModelCard("tiny", "sdxl", path=str(other))))
    fast, wanted = FastLab(Lab(other), other, root=tmp_path), params()
    (reference,), crowd = fast.lab.ours((0, wanted)), fast.ours((2, wanted), *strangers(128, 128))
    assert psnr(crowd[0], reference) >= 50
    assert psnr(*sdxl.lab.ours((0, wanted)), reference) < 40, "the method made no difference"


def test_loras_are_laid_over_the_reference(sdxl: FastLab, tmp_path: Path) -> None:
    """A graph knows no hooks: the steps of Samples with LoRAs run on the modules, beside others that do not."""
    from darkroom.types import Lora

    pipe = sdxl.lab.text_to_image
    write_diffusers(pipe, changes(pipe, ("unet", "text_encoder"), 6, 8, size=0.15), tmp_path / "one.safetensors")
    sdxl.lab.loras = tmp_path
    wanted = params(loras=(Lora("one", 1.0),))
    (reference,) = sdxl.lab.ours((0, wanted))
    fast = sdxl.ours((0, wanted), (0, params()))
    assert psnr(fast[0], reference) >= 50
    assert psnr(fast[0], fast[1]) < 40


def test_a_shape_that_keeps_coming_gets_a_graph_of_its_own(sdxl: FastLab) -> None:
    one = sdxl.lab.family.passes()[STEP]
    graph = open_graphs({STEP: one}, sdxl.graphs)[STEP]
    often, seldom = one.example(2, 16, 16), one.example(4, 32, 24)
    first = graph(*often)
    run_until(lambda: graph.fixed_shapes, graph, often)
    assert graph.fixed_shapes == [tuple(tuple(tensor.shape) for tensor in often)]
    assert torch.allclose(graph(*often), first, rtol=1e-3, atol=1e-4)
    assert graph(*seldom).shape == seldom[0].shape


def test_a_shape_gets_its_graph_at_once_where_that_is_asked_for(sdxl: FastLab) -> None:
    one = sdxl.lab.family.passes()[STEP]
    tensors = one.example(2, 16, 16)
    graph, unfixed = (open_graphs({STEP: one}, sdxl.graphs, fixed=fixed)[STEP] for fixed in (True, False))
    first = graph(*tensors)
    for either in (graph, unfixed):
        either.settle(*tensors)
    assert graph.fixed_shapes == [tuple(tuple(tensor.shape) for tensor in tensors)]
    assert unfixed.fixed_shapes == []
    assert torch.allclose(graph(*tensors), first, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [2, 3, 6])
def test_a_step_of_halves_agrees(labs: FastLab, rows: int) -> None:
    """Of one guided Sample, whose two rows then run apart, of odd rows, that stay whole, and of more; conditions change between calls."""
    one = labs.lab.family.passes()[STEP]
    graph = open_graphs({STEP: one}, labs.graphs, threads=2)[STEP]
    first, second = (one.example(rows, 16, 24) for _ in range(2))
    changes = [first, second, (*first[:3], *second[3:])]
    wanted = [graph(*tensors) for tensors in changes]
    graph.halved = True
    graph.settle(*first)
    assert graph.fixed_shapes
    assert graph.halved_shapes == (graph.fixed_shapes if rows % 2 == 0 else [])
    for tensors, out in zip(changes, wanted, strict=True):
        assert torch.allclose(graph(*tensors), out, rtol=1e-3, atol=1e-4)


def test_pictures_by_halves_agree_alone_and_in_company(labs: FastLab) -> None:
    wanted, family, rows_run = params(width=192, height=128), labs.lab.family, []
    one = family.passes()[STEP]
    graph = open_graphs({STEP: one}, labs.graphs, threads=2)[STEP]
    graph.halved = True
    for rows in (2, 4, 6, 8):
        graph.settle(*one.example(rows, 128 // family.latent_scale, 192 // family.latent_scale))

    def step(*tensors: torch.Tensor) -> torch.Tensor:
        if tuple(tuple(tensor.shape) for tensor in tensors) in graph.halved_shapes:
            rows_run.append(len(tensors[1]))
        return graph(*tensors)

    lab = copy.copy(labs)
    lab.fast = Fast(family.through({STEP: step}), apart=True)
    (reference,) = labs.lab.ours((0, wanted))
    (alone,) = lab.ours((0, wanted))
    assert rows_run == [2] * wanted.steps
    crowd = lab.ours((2, wanted), *strangers(192, 128))
    assert max(rows_run) > 2, "halves never drew it with others"
    assert psnr(alone, reference) >= 50
    assert psnr(crowd[0], reference) >= 50
    assert apart(crowd[0], alone) <= 2


class Watched:
    """A family that shows what it is to run."""

    def __init__(self, family: Any):
        self._family, self.runs = family, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def through(self, runs: dict[str, Any]) -> Any:
        self.runs = runs
        return self._family.through(runs)


@pytest.mark.parametrize("halved", [True, False])
def test_the_form_that_was_found_is_taken_at_the_next_start(sdxl: FastLab, tmp_path: Path, halved: bool) -> None:
    folder = Path(shutil.copytree(sdxl.graphs, graphs_folder(tmp_path, sdxl.card)))
    (folder / CHOICE).write_text(json.dumps({"backend": OPENVINO, "why": "it was faster", "halved": halved}))
    family = Watched(sdxl.lab.family)
    assert Backends("auto", tmp_path, ROOM, threads=2).accelerate(family, sdxl.card) is not None
    assert family.runs[STEP].halved is halved


class Timed:
    """As much of a step's graph as is asked for its time: seconds as a whole and of halves."""

    def __init__(self, whole: float, halves: float, can_be_halved: bool = True):
        self._seconds, self.can_be_halved, self.halved, self.settled = {False: whole, True: halves}, can_be_halved, False, None

    def settle(self, *_: Any) -> None:
        self.settled = self.halved

    def __call__(self, *_: Any) -> None:
        time.sleep(self._seconds[self.settled])


@pytest.mark.parametrize(
    ("graph", "halved"), [(Timed(0.02, 0.01), True), (Timed(0.01, 0.03), False), (Timed(0.02, 0.01, can_be_halved=False), False)]
)
def test_halves_are_taken_unless_they_are_slower(graph: Timed, halved: bool) -> None:
    settle_step(graph, ())
    assert (graph.halved, graph.settled) == (halved, halved)


def test_odd_threads_are_not_halved(sdxl: FastLab) -> None:
    one = sdxl.lab.family.passes()[STEP]
    assert [open_graphs({STEP: one}, sdxl.graphs, threads=threads)[STEP].can_be_halved for threads in (1, 2, 3, 4)] == [False, True, False, True]
    assert not open_graphs({STEP: one}, sdxl.graphs, threads=2, fixed=False)[STEP].can_be_halved


def test_graphs_for_one_shape_are_bounded(sdxl: FastLab) -> None:
    one = sdxl.lab.family.passes()["decode"]
    import openvino as ov

    sides = [(16, 16), (16, 24), (24, 16), (24, 24)]
    graph = Graph(sdxl.graphs / "decode.xml", ov.Core(), most_fixed=2, idle=0)
    for side in sides:
        run_until(lambda side=side: side in fixed_sides(graph), graph, one.example(1, *side))
    assert fixed_sides(graph) == sides[-2:], "those that were idle gave their places"

    graph = Graph(sdxl.graphs / "decode.xml", ov.Core(), most_fixed=1, idle=3600)
    run_until(lambda: fixed_sides(graph), graph, one.example(1, *sides[0]))
    until = time.monotonic() + 2
    run_until(lambda: time.monotonic() > until, graph, one.example(1, *sides[1]))
    assert fixed_sides(graph) == sides[:1], "one that was in use kept its place"


def fixed_sides(graph: Graph) -> list[tuple[int, ...]]:
    return [shapes[0][2:] for shapes in graph.fixed_shapes]


def run_until(met: Callable[[], Any], graph: Graph, tensors: tuple[torch.Tensor, ...]) -> None:
    """Run the pass again and again until the condition is met, for a minute at most."""
    until = time.monotonic() + 60
    while not met() and time.monotonic() < until:
        graph(*tensors)


def test_a_model_is_converted_and_measured_once(sdxl: FastLab, tmp_path: Path) -> None:
    backends, lab, folder = Backends("auto", tmp_path, ROOM), sdxl.lab, graphs_folder(tmp_path, sdxl.card)
    half_made = [folder.with_name(f"{name}{PARTIAL}") for name in (folder.name, "of other weights")]
    for one in half_made:
        one.mkdir(parents=True)
        (one / f"{STEP}.xml").write_text("half of it")
    parts: list[float] = []
    backends.accelerate(lab.family, sdxl.card, parts.append)
    assert list(folder.parent.iterdir()) == [folder]
    choice = read_choice(folder)
    assert choice is not None
    assert "against" in choice.why
    assert backends.foreseen(sdxl.card, 1, "cpu", "float32") == choice
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    backends.accelerate(lab.family, sdxl.card)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made


def test_who_waits_for_another_process_finds_its_graphs(sdxl: FastLab, tmp_path: Path) -> None:
    folder, found = graphs_folder(tmp_path, sdxl.card), []
    waiting = threading.Thread(target=lambda: found.append(Backends("auto", tmp_path, ROOM).accelerate(sdxl.lab.family, sdxl.card)))
    with turn(folder):
        waiting.start()
        waiting.join(1)
        assert list(folder.parent.iterdir()) == [], "it did not wait"
        shutil.copytree(sdxl.graphs, folder)
        (folder / CHOICE).write_text(json.dumps({"backend": OPENVINO, "why": "it was faster"}))
        made = (folder / f"{STEP}.xml").stat().st_mtime_ns
    waiting.join(60)
    assert found[0] is not None
    assert (folder / f"{STEP}.xml").stat().st_mtime_ns == made


def test_what_was_found_slower_is_not_used_and_not_kept(sdxl: FastLab, tmp_path: Path) -> None:
    folder = graphs_folder(tmp_path, sdxl.card)
    folder.mkdir(parents=True)
    (folder / CHOICE).write_text(json.dumps({"backend": EAGER, "why": "it was slower"}))
    assert Backends("auto", tmp_path, ROOM).accelerate(sdxl.lab.family, sdxl.card) is None
    assert [file.name for file in folder.iterdir()] == [CHOICE]
    assert Backends(OPENVINO, tmp_path, ROOM).accelerate(sdxl.lab.family, sdxl.card) is not None


def test_graphs_that_cannot_be_read_are_made_again(sdxl: FastLab, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sdxl.graphs, graphs_folder(tmp_path, sdxl.card)))
    (folder / f"{STEP}.xml").write_text("spoilt")
    (folder / CHOICE).write_text(json.dumps({"backend": OPENVINO, "why": "it was faster"}))
    assert Backends("auto", tmp_path, ROOM).accelerate(sdxl.lab.family, sdxl.card) is None
    assert not folder.exists()
    assert Backends(OPENVINO, tmp_path, ROOM).accelerate(sdxl.lab.family, sdxl.card) is not None


def test_graphs_are_compiled_beside_what_else_a_start_has_to_do(sdxl: FastLab, tmp_path: Path) -> None:
    folder = graphs_folder(tmp_path, sdxl.card)
    backends = Backends("auto", tmp_path, ROOM)
    backends.begin(sdxl.card, "cpu", "float32")  # there is nothing yet
    backends.begin(replace(sdxl.card, path=None), "cpu", "float32")
    assert not folder.exists()
    shutil.copytree(sdxl.graphs, folder, ignore=shutil.ignore_patterns("compiled"))
    (folder / CHOICE).write_text(json.dumps({"backend": OPENVINO, "why": "it was faster"}))
    backends.begin(sdxl.card, "cpu", "float32")
    until = time.monotonic() + 60
    while len(list(folder.glob("compiled/*.blob"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    for name in sdxl.lab.family.passes():
        (folder / f"{name}.xml").write_text("spoilt")
    assert backends.accelerate(sdxl.lab.family, sdxl.card) is not None, "it took what was compiled before"
    assert backends.accelerate(sdxl.lab.family, sdxl.card) is None, "but once"


class Untraceable(torch.nn.Module):
    """A net that no converter can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not to be traced")


class Odd:
    """As much of a Family as is asked before its passes run."""

    device, dtype = torch.device("cpu"), torch.float32

    def passes(self) -> dict[str, Pass]:
        return {"denoiser": Pass(Untraceable(), ((-1, 4, -1, -1),))}


def test_a_model_that_cannot_be_converted_is_tried_once(sdxl: FastLab, tmp_path: Path) -> None:
    backends = Backends("auto", tmp_path, ROOM)
    assert backends.accelerate(Odd(), sdxl.card) is None
    choice = backends.foreseen(sdxl.card, 1, "cpu", "float32")
    assert choice.backend == EAGER
    assert "converted" in choice.why
    with pytest.raises(Unsupported, match="converted"):
        Backends(OPENVINO, tmp_path / "other", ROOM).accelerate(Odd(), sdxl.card)


def test_other_weights_have_other_graphs(checkpoint: Path, tmp_path: Path) -> None:
    card = ModelCard("tiny", "sdxl", path=str(checkpoint))
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes(b"other")
    assert graphs_folder(tmp_path, card) != graphs_folder(tmp_path, replace(card, path=str(copy)))
    assert graphs_folder(tmp_path, card) == graphs_folder(tmp_path, card)


def test_obstacles_are_named(tmp_path: Path, sdxl: FastLab) -> None:
    auto = Backends("auto", tmp_path, budget=1000)
    assert auto.obstacle(500, "cpu", "float32") == ""
    assert "memory_budget" in auto.obstacle(501, "cpu", "float32")
    assert "float16" in auto.obstacle(1, "cpu", "float16")
    assert "exact" in Backends("auto", tmp_path, 1000, exact=True).obstacle(1, "cpu", "float32")
    assert Backends(COMPILE, tmp_path, 1000).foreseen(sdxl.card, 1, "cpu", "float32").backend == COMPILE
    assert "setting" in Backends(EAGER, tmp_path, 1000).obstacle(1, "cpu", "float32")
    with pytest.raises(Unsupported, match="float16"):
        Backends(OPENVINO, tmp_path, 1000).obstacle(1, "cpu", "float16")
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "graphs"
    assert Backends("auto", blocked, ROOM).accelerate(sdxl.lab.family, sdxl.card) is None
    with pytest.raises(Unsupported, match="openvino"):
        Backends(OPENVINO, blocked, ROOM).accelerate(sdxl.lab.family, sdxl.card)


def test_int8_is_near_the_reference_alone_and_in_company(lab: Lab, checkpoint: Path, tmp_path: Path) -> None:
    """To a bound of 25 dB, in any company, and in exact mode to the bit; closer than 60 would be no int8."""
    fast, wanted = FastLab(lab, checkpoint, INT8, tmp_path), params(width=256, height=192)
    (reference,) = lab.ours((0, wanted))
    (alone,) = fast.ours((0, wanted))
    crowd = fast.ours((2, wanted), *strangers(256, 192))
    assert max(len(batch) for batch in lab.batches if "0" in batch) >= 3, "it never had company"
    assert 25 <= psnr(alone, reference) < 60
    assert psnr(crowd[0], reference) >= 25
    assert psnr(crowd[0], alone) >= 30
    exact = FastLab(lab, checkpoint, INT8, tmp_path, exact=True)
    assert np.array_equal(*exact.ours((0, wanted)), exact.ours((2, wanted), *strangers(256, 192))[0])


def test_int8_is_kept_and_tells_how_far_it_is_off(sd3: FastLab, tmp_path: Path) -> None:
    """Of the other family; what is gone (a choice is there, but no graphs) is made again, and what was made without int8 stays."""
    plain, folder = graphs_folder(tmp_path, sd3.card), graphs_folder(tmp_path, sd3.card, int8=True)
    older = folder.with_name("older")
    for one in (plain, folder, older):
        one.mkdir(parents=True)
    (folder / CHOICE).write_text(json.dumps({"backend": INT8, "why": "so it was"}))
    lab, backends = FastLab(sd3.lab, Path(sd3.card.path or ""), INT8, tmp_path), Backends(INT8, tmp_path, ROOM)
    choice = read_choice(folder)
    assert choice is not None
    assert choice.backend == INT8
    assert "%" in choice.why
    assert backends.foreseen(lab.card, 1, "cpu", "float32") == choice
    assert plain.exists()
    assert not older.exists()
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert backends.accelerate(lab.lab.family, lab.card) is not None
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    assert 25 <= psnr(*lab.lab.ours((0, params())), *lab.ours((0, params()))) < 60


def test_an_int8_graph_that_is_off_is_refused(sdxl: FastLab) -> None:
    seen = see(sdxl.lab.family, sdxl.card)
    assert worst_error(seen.one.module, seen) < 1e-5
    with pytest.raises(Unsupported, match="int8"):
        worst_error(lambda x, *rest: torch.zeros_like(x), seen)
