"""Passes as OpenVINO graphs on the CPU, in fp32 (the denoiser in int8 where that is asked for): converted from PyTorch once, then read from files.

A graph takes any rows and sides. A shape that keeps coming gets a graph of its own, in which nothing is left to be worked out
at each call: a third faster with nets as small as the demo's. It is compiled beside the work, on a thread. A step's may be one of halves
(`infer.py`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
import structlog
import torch

from darkroom.engine.compiling import Begun, fixed_form, for_any_shape, in_streams, options
from darkroom.engine.infer import HALVES, Halves, Whole, half_of
from darkroom.engine.int8 import Seen, quantized
from darkroom.engine.norms import channelwise
from darkroom.engine.passes import STEP, Pass, Step, UNet

log = structlog.get_logger("engine")

TRACED = 2, 21, 27  # rows and latent sides of the example: odd sides, so that the graph also holds how they are rounded
MOST_FIXED = 4  # graphs for one shape, of one pass: each takes about five times the weights in memory
FIXED_BYTES = 100e6  # of weights in these graphs, of one pass, so large nets have none
IDLE = 60.0  # seconds
PAYS = 1  # a shape gets its own graph once it took so many times what compiling takes
FIRST_GUESS = 0.5  # seconds that compiling for one shape takes
PARTIAL = ".partial"  # what the folder of a conversion that goes on ends with

Shapes = tuple[tuple[int, ...], ...]


@dataclass
class _Fixed:
    """A graph for one shape, and when it last ran."""

    run: Whole | Halves
    used: float


class Graph:
    """A pass as a compiled graph. One thread calls it; another, now and then, compiles a graph for one shape and hands it over."""

    def __init__(
        self, file: Path, core: ov.Core, threads: int = 0, most_fixed: int = MOST_FIXED, idle: float = IDLE,
        compiled: ov.CompiledModel | None = None,
    ):  # fmt: skip
        """threads: 0 takes a thread for each core. most_fixed: shapes that may have graphs of their own; one that has not run for
        `idle` seconds gives its place to another. compiled: what `compiling.for_any_shape` made of this file, where that is there."""
        self._core, self._threads = core, threads
        self.halved = False  # of a step: graphs for one shape are of halves from now on, where they can be
        own = fixed_form(file)
        self._fixed_file = own if own.exists() else file
        self._any = Whole(compiled or for_any_shape(core, file, threads))
        self._idle, self._most_fixed = idle, min(most_fixed, int(FIXED_BYTES / file.with_suffix(".bin").stat().st_size))
        self._fixed: OrderedDict[Shapes, _Fixed] = OrderedDict()  # the least recently used first
        self._spent: Counter[Shapes] = Counter()  # seconds by shape in the graph for any
        self._compile_seconds = FIRST_GUESS
        self._compiling = False
        self._made: tuple[Shapes, Whole | Halves | None, float] | None = None  # handed over: shapes, what to run or None, the seconds that it took

    @property
    def fixed_shapes(self) -> list[Shapes]:
        """Those that have a graph of their own, the least recently used first."""
        return list(self._fixed)

    @property
    def halved_shapes(self) -> list[Shapes]:
        """Those of them whose graph is of halves."""
        return [shapes for shapes, fixed in self._fixed.items() if isinstance(fixed.run, Halves)]

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        shapes = tuple(tensor.shape for tensor in tensors)
        self._take_over()
        fixed = self._fixed.get(shapes)
        if fixed is None:
            return self._run_any(tensors, shapes)
        fixed.used = time.monotonic()
        self._fixed.move_to_end(shapes)
        return fixed.run(tensors)

    def settle(self, *tensors: torch.Tensor) -> None:
        """Give the shapes of these tensors a graph of their own now, in place of one that is there, where they may have one."""
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        if not self._compiling and (shapes in self._fixed or self._has_room()):
            self._fix(shapes)
            self._take_over()

    @property
    def can_be_halved(self) -> bool:
        """Whether graphs for one shape may be of halves: the threads are even."""
        return self._most_fixed > 0 and (self._threads or os.cpu_count() or 1) % HALVES == 0

    def _run_any(self, tensors: tuple[torch.Tensor, ...], shapes: Shapes) -> torch.Tensor:
        start = time.perf_counter()
        out = self._any(tensors)
        self._spent[shapes] += time.perf_counter() - start  # type: ignore[assignment]
        if self._spent[shapes] > PAYS * self._compile_seconds and not self._compiling and self._has_room():
            self._compiling = True
            threading.Thread(target=self._fix, args=(shapes,)).start()  # not a daemon: the interpreter waits for it, and must
        return out

    def _has_room(self) -> bool:
        """Whether one more shape may have its graph. One in use is not driven out: shapes in turn would be compiled for ever."""
        if len(self._fixed) < self._most_fixed:
            return True
        return bool(self._fixed) and time.monotonic() - next(iter(self._fixed.values())).used > self._idle

    def _fix(self, shapes: Shapes) -> None:
        """Mostly on a thread: compile a graph for these shapes and hand it over."""
        start = time.thread_time()  # of this thread alone, which does nearly all of it: beside other work it would seem to pay later
        run: Whole | Halves | None = None
        try:
            if self.halved and shapes[0][1] % HALVES == 0:
                run = Halves(self._compile(half_of(shapes), in_streams(self._threads, HALVES)))
            else:
                run = Whole(self._compile(shapes, options(self._threads)))
        except Exception as error:
            log.warning("a graph for one shape could not be compiled", shapes=shapes, error=repr(error))
        self._made = shapes, run, time.thread_time() - start

    def _compile(self, shapes: Shapes, chosen: Mapping[str, Any]) -> ov.CompiledModel:
        model = self._core.read_model(self._fixed_file)
        model.reshape(dict(enumerate(ov.PartialShape(list(shape)) for shape in shapes)))
        return self._core.compile_model(model, "CPU", chosen)

    def _take_over(self) -> None:
        if self._made is None:
            return
        shapes, run, self._compile_seconds = self._made
        self._made, self._compiling = None, False
        self._spent.clear()
        if run is None:
            self._most_fixed = 0  # what failed once is not tried again
            return
        if shapes not in self._fixed and len(self._fixed) >= self._most_fixed:
            self._fixed.popitem(last=False)
        self._fixed[shapes] = _Fixed(run, time.monotonic())


def open_graphs(
    passes: Mapping[str, Pass], folder: Path, threads: int = 0, fixed: bool = True, tell: Callable[[float], None] = lambda part: None,
    seen: Seen | None = None, begun: Begun | None = None,
) -> dict[str, Graph]:  # fmt: skip
    """The graphs of these passes, from the files in `folder`, which are made first where they are not there (who has the `turn` may).

    threads as in Graph; fixed lets shapes have graphs of their own; tell is told the part that is converted, 0 to 1; the step is
    made in int8 where it was `seen`; `begun` may have some of them. Raises OSError where files cannot be written, RuntimeError where
    a pass cannot be converted or read.
    """
    if not are_there(passes, folder):
        _convert_all(passes, folder, tell, seen)
    core, files = ov.Core(), {name: folder / f"{name}.xml" for name in passes}
    compiled = {file: begun.take(file) if begun else None for file in files.values()}
    return {name: Graph(file, core, threads, MOST_FIXED if fixed else 0, compiled=compiled[file]) for name, file in files.items()}


def are_there(passes: Iterable[str], folder: Path) -> bool:
    """Whether the graphs of these passes are in `folder`."""
    return all((folder / f"{name}.xml").exists() for name in passes)


def clear_older(folder: Path) -> None:
    """Graphs of the same model, in the same numbers, from other weights or versions, and what a process that died left half made. Only
    who has the turn may."""
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """One process at a time makes graphs of a model in these numbers. Who waited finds them made; a process that dies loses its turn."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.parent.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process makes graphs of this model; waiting for them", folder=str(folder))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_all(passes: Mapping[str, Pass], folder: Path, tell: Callable[[float], None], seen: Seen | None) -> None:
    """Write all graphs, or nothing."""
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that died
    partial.mkdir(parents=True)
    try:
        for done, (name, one) in enumerate(passes.items(), 1):
            file = partial / f"{name}.xml"
            lossy = seen if name == STEP else None
            ov.save_model(_convert(one, lossy), file, compress_to_fp16=False)
            if _has_unet(one.module) and file.with_suffix(".bin").stat().st_size <= FIXED_BYTES:  # an autoencoder gains nothing by it
                with channelwise(one.module):
                    ov.save_model(_convert(one, lossy), fixed_form(file), compress_to_fp16=False)
            tell(done / len(passes))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _has_unet(module: torch.nn.Module) -> bool:
    return isinstance(module, Step) and isinstance(module.denoiser, UNet)


@torch.no_grad()
def _convert(one: Pass, seen: Seen | None) -> ov.Model:
    """By OpenVINO's frontend itself: its `convert_model` would report each use to its makers."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend: Any = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(action="ignore", category=torch.jit.TracerWarning):  # of checks that hold for every size
        decoder = TorchScriptPythonDecoder(one.module.eval(), example_input=one.example(*TRACED))
    model = frontend.convert(frontend.load(decoder))
    model.reshape(dict(enumerate(ov.PartialShape(list(shape)) for shape in one.shapes)))
    return quantized(model, seen) if seen else model
