"""Which backend runs the passes of a model: eager PyTorch, the reference, OpenVINO's graphs where they are faster here, or
torch.compile where that is asked for.

`auto` begins a new model with PyTorch; `preparation.py` has it converted beside the work, both are measured once, and the outcome is
remembered beside the graphs. A large model is converted and measured at its first load. No torch at import.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from darkroom.engine.weights import count_weights, stamps
from darkroom.errors import Unsupported
from darkroom.types import ModelCard

if TYPE_CHECKING:
    from darkroom.engine.race import Raced

log = structlog.get_logger("engine")

EAGER, OPENVINO, INT8, COMPILE = "eager", "openvino", "int8", "compile"
GRAPHS = (OPENVINO, INT8)
LAYOUT = 6  # of the graphs: another number makes those on the disk stale
DEMANDED = "the setting backend says so"
CHOICE = "choice.json"
COPIES = 3  # of the weights while a model that is in memory is converted: its own, those in the other process, and the graphs
STEPS = 20  # that a picture takes, for the weight of the denoiser against the decode


@dataclass(frozen=True)
class Choice:
    """What runs a model's passes, and why, in words for an operator."""

    backend: str
    why: str
    halved: bool = False  # whether graphs of a step for one shape are of halves


@dataclass(frozen=True)
class Fast:
    """The same nets through a faster backend; apart: it has weights and threads of its own, beside PyTorch's."""

    family: Any
    apart: bool


class Backends:
    """wanted: `auto`, `eager`, `openvino`, `int8` or `compile`; root: the folder of graphs; budget: bytes that all weights may take; exact: whether
    pictures must be bit-equal in any company; threads: of the CPU, 0 for as many as there are cores."""

    def __init__(self, wanted: str, root: Path, budget: int, exact: bool = False, threads: int = 0):
        self._wanted, self._root, self._budget, self._exact, self._threads = wanted, root, budget, exact, threads
        self._begun: dict[Path, Any] = {}

    def obstacle(self, weights: int, device: str, dtype: str) -> str:
        """Why weights of so many bytes cannot run as graphs; empty where they can. Raises Unsupported where it was demanded."""
        if self._wanted in (EAGER, COMPILE):
            return DEMANDED
        why = self._obstacle(weights, device, dtype)
        if why and self._wanted in GRAPHS:
            raise Unsupported(f"backend {self._wanted} cannot be used: {why}")
        return why

    def foreseen(self, card: ModelCard, weights: int, device: str, dtype: str) -> Choice:
        """What will run a model, as far as that can be told without loading it."""
        why = self.obstacle(weights, device, dtype)
        if why:
            return Choice(COMPILE if self._wanted == COMPILE else EAGER, why)
        known = read_choice(self._folder(card))
        if self._wanted in GRAPHS:
            return known if known and known.backend == INT8 else Choice(self._wanted, DEMANDED)
        if known:
            return known
        if COPIES * weights > self._budget:
            return Choice("auto", "its first load will measure PyTorch against OpenVINO")
        return Choice("auto", f"{getting_ready(card.name)}: it runs on PyTorch until a server has measured OpenVINO against it")

    def _obstacle(self, weights: int, device: str, dtype: str) -> str:
        from darkroom.engine.hardware import choose

        where, number = choose(device, dtype)
        if where.type != "cpu" or str(number) != "torch.float32":
            return f"graphs are run in float32 on the CPU, and this is {number} on {where}"
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed (pip install openvino)"
        if self._wanted == INT8 and importlib.util.find_spec("nncf") is None:
            return "nncf is not installed (pip install nncf)"
        if self._exact and self._wanted == "auto":
            return "exact mode takes the reference"
        if 2 * weights > self._budget:
            return f"weights and graphs would take {2 * weights / 1e9:.1f} GB and the budget is {self._budget / 1e9:.1f} GB (setting memory_budget)"
        return ""

    def begin(self, card: ModelCard, device: str, dtype: str) -> None:
        """Compile the graphs of a model on a thread, where they are made and will run it; `accelerate` takes them. Meanwhile its nets may be
        imported and read. Raises DarkroomError or OSError where its files cannot be read."""
        if card.path is None or not Path(card.path).exists():
            return
        folder = self._folder(card)
        choice = read_choice(folder)
        if choice and choice.backend in GRAPHS and not self.obstacle(4 * count_weights(Path(card.path)), device, dtype):
            from darkroom.engine.compiling import Begun

            self._begun[folder] = Begun(folder, self._threads)

    def defers(self, family: Any, card: ModelCard) -> bool:
        """Whether a model begins with PyTorch, to be converted and measured later: where nothing is known of it yet, and a
        second process has room to convert it."""
        if self._wanted != "auto" or read_choice(self._folder(card)) is not None:
            return False
        weights = _bytes_of(family)
        return not self._obstacle_of(family, weights) and COPIES * weights <= self._budget

    def is_converted(self, family: Any, card: ModelCard) -> bool:
        """Whether there is nothing left to convert: graphs are there, or it is known that none can be."""
        from darkroom.engine.graphs import are_there

        folder = self._folder(card)
        return read_choice(folder) is not None or are_there(family.passes(), folder)

    def convert(self, family: Any, card: ModelCard) -> None:
        """Write the graphs of a model, compiled too, to be measured by another process. Where that fails it is noted."""
        from darkroom.engine.graphs import clear_older, open_graphs

        folder = self._folder(card)
        try:
            with self._turn(family, folder):
                if self.is_converted(family, card):
                    return
                _check_disk(folder, _bytes_of(family))
                open_graphs(family.passes(), folder, self._threads)
                clear_older(folder)
        except (OSError, RuntimeError, Unsupported) as error:
            log.warning("no graphs", model=card.name, error=repr(error))
            self._given_up(folder, error)

    def give_up(self, card: ModelCard, error: Exception) -> None:
        """Note that a model cannot be converted: it is not tried again."""
        self._given_up(self._folder(card), error)

    def candidate(self, family: Any, card: ModelCard) -> Callable[[], Fast | None]:
        """Open graphs that `convert` made, on any thread. What it returns is for the thread that owns the nets: it measures them
        against PyTorch and returns the family through what is faster, None where that is PyTorch."""
        from darkroom.engine.graphs import open_graphs

        folder = self._folder(card)
        if read_choice(folder) is None and not self.is_converted(family, card):
            return lambda: None  # what kept it from being converted may have passed by the next load
        try:
            graphs = {} if self._is_eager(folder) else open_graphs(family.passes(), folder, self._threads)
        except (OSError, RuntimeError) as error:
            log.warning("no graphs", model=card.name, error=repr(error))
            self._given_up(folder, error)
            graphs = {}
        return lambda: self._settle(family, card, graphs)

    def _settle(self, family: Any, card: ModelCard, graphs: Mapping[str, Any]) -> Fast | None:
        from darkroom.engine.hardware import use_threads

        folder = self._folder(card)
        use_threads(self._threads)
        try:
            kept, choice = self._decide(family, folder, graphs) if graphs else (graphs, read_choice(folder))
        except (OSError, RuntimeError, Unsupported) as error:
            log.warning("no graphs", model=card.name, error=repr(error))
            kept, choice = {}, self._given_up(folder, error)
        if choice is not None:
            log.info("backend", model=card.name, backend=choice.backend, why=choice.why)
        return Fast(family.through(kept), apart=True) if kept else None

    def _is_eager(self, folder: Path) -> bool:
        choice = read_choice(folder)
        return choice is not None and self._stays_eager(choice)

    def accelerate(self, family: Any, card: ModelCard, tell: Callable[[float], None] = lambda part: None) -> Fast | None:
        """The family through a faster backend, or None where eager PyTorch is to run it; `tell` is told the part that is done,
        0 to 1. Raises Unsupported where graphs were demanded and cannot be had.
        """
        if self._wanted == COMPILE:
            from darkroom.engine.compiled import Compiled

            name, module = family.denoiser()
            return Fast(family.through({name: Compiled(module, family.device)}), apart=False)
        weights = _bytes_of(family)
        why = self._obstacle_of(family, weights)
        if why:
            log.info("backend", model=card.name, backend=EAGER, why=why)
            return None
        folder = self._folder(card)
        try:
            with self._turn(family, folder):
                _check_disk(folder, weights)
                graphs, choice = self._open_int8(family, card, folder, tell) if self._wanted == INT8 else self._open(family, folder, tell)
        except (OSError, RuntimeError, Unsupported) as error:
            log.warning("no graphs", model=card.name, error=repr(error))
            graphs, choice = {}, self._given_up(folder, error)
        log.info("backend", model=card.name, backend=choice.backend, why=choice.why)
        return Fast(family.through(graphs), apart=True) if graphs else None

    def _obstacle_of(self, family: Any, weights: int) -> str:
        return self.obstacle(weights, str(family.device), str(family.dtype).removeprefix("torch."))

    def _given_up(self, folder: Path, error: Exception) -> Choice:
        """Files that cannot be read are made again at the next load; a model that cannot be converted is not tried again."""
        new = read_choice(folder) is None
        shutil.rmtree(folder, ignore_errors=True)
        why = _words_for(error)
        if self._wanted in GRAPHS:
            raise Unsupported(f"backend {self._wanted} cannot be used: {why}") from error
        choice = Choice(EAGER, why)
        if new and not isinstance(error, OSError):  # a lack of room may pass
            folder.mkdir(parents=True)
            _write_choice(folder, choice)
        return choice

    def _folder(self, card: ModelCard) -> Path:
        return graphs_folder(self._root, card, int8=self._wanted == INT8)

    def _turn(self, family: Any, folder: Path) -> AbstractContextManager[None]:
        """Where graphs are still to be made, the right to make them."""
        from darkroom.engine.graphs import are_there, turn

        choice = read_choice(folder)
        made = choice and (self._stays_eager(choice) or are_there(family.passes(), folder))
        return nullcontext() if made else turn(folder)

    def _stays_eager(self, choice: Choice) -> bool:
        return choice.backend == EAGER and self._wanted == "auto"

    def _open_int8(self, family: Any, card: ModelCard, folder: Path, tell: Callable[[float], None]) -> tuple[Mapping[str, Any], Choice]:
        """Without a race: who asks for int8 has chosen."""
        from darkroom.engine.graphs import are_there, clear_older, open_graphs
        from darkroom.engine.int8 import see, worst_error
        from darkroom.engine.passes import STEP
        from darkroom.engine.race import settle_step

        choice, passes = read_choice(folder), family.passes()
        seen = None if choice and are_there(passes, folder) else see(family, card)
        graphs = open_graphs(passes, folder, self._threads, fixed=not self._exact, tell=tell, seen=seen, begun=self._begun.pop(folder, None))
        if seen is not None:
            worst = worst_error(graphs[STEP], seen)
            settle_step(graphs[STEP], seen.calls[0][0])
            worst = max(worst, worst_error(graphs[STEP], seen))
            why = f"{DEMANDED}; a pass of the denoiser differs from PyTorch's by {worst:.1%} of its size at most"
            choice = Choice(INT8, why, graphs[STEP].halved)
            _write_choice(folder, choice)
            clear_older(folder)
        assert choice is not None
        graphs[STEP].halved = choice.halved
        return graphs, choice

    def _open(self, family: Any, folder: Path, tell: Callable[[float], None]) -> tuple[Mapping[str, Any], Choice]:
        from darkroom.engine.graphs import clear_older, open_graphs

        choice = read_choice(folder)
        if choice and self._stays_eager(choice):
            return {}, choice
        graphs = open_graphs(family.passes(), folder, self._threads, fixed=not self._exact, tell=tell, begun=self._begun.pop(folder, None))
        if choice is None:
            clear_older(folder)
        return self._decide(family, folder, graphs)

    def _decide(self, family: Any, folder: Path, graphs: Mapping[str, Any]) -> tuple[Mapping[str, Any], Choice]:
        """What is known of these graphs, measured now where nothing is; without the graphs where PyTorch is faster."""
        from darkroom.engine.passes import STEP
        from darkroom.engine.race import race

        choice = read_choice(folder)
        if choice is None:
            found = race(family.passes(), graphs)
            choice = _choose(found, graphs[STEP].halved)
            _write_choice(folder, choice)
        if self._stays_eager(choice):
            shutil.rmtree(folder)
            folder.mkdir()
            _write_choice(folder, choice)
            return {}, choice
        graphs[STEP].halved = choice.halved
        return graphs, choice if self._wanted == "auto" else Choice(OPENVINO, DEMANDED)


def getting_ready(model: str) -> str:
    """What is said while a new model is converted and measured."""
    return f"Getting {model} ready (first time only)"


def _bytes_of(family: Any) -> int:
    """Bytes of the weights that graphs hold, in float32."""
    return sum(4 * weight.numel() for one in family.passes().values() for weight in one.module.parameters())


def _words_for(error: Exception) -> str:
    if isinstance(error, Unsupported):
        return str(error)
    if isinstance(error, OSError):
        return f"its graphs could not be kept: {error.strerror or error}"
    return f"the model could not be converted ({type(error).__name__}; the log says more)"


def graphs_folder(root: Path, card: ModelCard, int8: bool = False) -> Path:
    """Where the graphs of a model lie: other weights, another version or another layout, another folder; int8's lie apart, for a change of the setting
    must not cost a conversion."""
    made_by = [LAYOUT, *(version(package) for package in ("openvino", "diffusers", "torch", *(["nncf"] if int8 else [])))]
    key = hashlib.sha256(json.dumps([stamps(card), made_by]).encode()).hexdigest()[:16]
    return root / card.name / (INT8 if int8 else OPENVINO) / key


def read_choice(folder: Path) -> Choice | None:
    """What was found when the model was new; None where that is still to come."""
    try:
        return Choice(**json.loads((folder / CHOICE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_choice(folder: Path, choice: Choice) -> None:
    (folder / CHOICE).write_text(json.dumps(asdict(choice)))


def _choose(found: Mapping[str, Raced], halved: bool) -> Choice:
    """The faster of both over a picture."""
    times = {"decode": 1, "encode": 0}  # in a picture; few are encoded
    eager = sum(times.get(name, STEPS) * one.eager for name, one in found.items())
    openvino = sum(times.get(name, STEPS) * one.openvino for name, one in found.items())
    lines = [f"{name} {1000 * one.openvino:.0f} against {1000 * one.eager:.0f} ms" for name, one in found.items()]
    how = "OpenVINO, steps in two halves at once," if halved else "OpenVINO"
    return Choice(OPENVINO if openvino < eager else EAGER, f"measured once, {how} against PyTorch: {', '.join(lines)}", halved)


def _check_disk(folder: Path, weights: int) -> None:
    """Raises OSError where the disk lacks room for graphs that are still to be made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    needed = 2 * weights + 2**28  # as graphs, and compiled
    if not folder.exists() and free < needed:
        raise OSError(f"converting takes {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free")
