"""The loop: poisoned rows, truncated prompts, the prompt cache, what a checkpoint must be."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.hardware import choose
from darkroom.engine.messages import Cancel, Submit
from darkroom.engine.prompts import cut_word
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.engine.sample import Batch
from darkroom.engine.sdxl import SDXL
from darkroom.errors import Unsupported
from darkroom.types import FINAL, Cancelled, Event, Failed, Finished, Params, Preview

from .conftest import Lab, make_checkpoint, photo, psnr
from .test_parity import params


def drain(engine: Engine) -> dict[str, Event]:
    """Run until nothing is left; the final event of each job."""
    ended: dict[str, Event] = {}
    engine_events = engine.step()
    while True:
        for event in engine_events:
            if isinstance(event, FINAL):
                assert event.job_id not in ended, "a job ended twice"
                ended[event.job_id] = event
        if not engine.busy:
            return ended
        engine_events = engine.step()


def test_a_row_that_is_not_finite_fails_alone(lab: Lab) -> None:
    engine = lab.engine()
    for i in range(3):
        engine.put(Submit(str(i), params(seed=i + 1)))
    for _ in range(5):
        engine.step()
    poisoned = engine.scheduler._samples["1"]
    poisoned.state.latents = torch.full_like(poisoned.state.latents, float("nan"))
    ended = drain(engine)
    assert isinstance(ended["1"], Failed)
    assert ended["1"].name == "not_finite"
    assert isinstance(ended["0"], Finished)
    assert isinstance(ended["2"], Finished)


def test_a_row_that_breaks_the_pass_fails_alone(lab: Lab) -> None:
    engine = lab.engine()
    for i in range(3):
        engine.put(Submit(str(i), params(seed=i + 1)))
    for _ in range(5):
        engine.step()
    engine.scheduler._samples["1"].state.latents = torch.zeros(2, 2, 5, 16, 16)
    ended = drain(engine)
    assert isinstance(ended["1"], Failed)
    assert isinstance(ended["0"], Finished)
    assert isinstance(ended["2"], Finished)


def test_a_picture_that_cannot_be_prepared_fails_alone(lab: Lab) -> None:
    engine = lab.engine()
    engine.put(Submit("bad", params(image=b"too short", control_strength=Decimal("0.5"))))
    engine.put(Submit("good", params()))
    ended = drain(engine)
    assert isinstance(ended["bad"], Failed)
    assert isinstance(ended["good"], Finished)


def test_cancel_at_every_stage(lab: Lab) -> None:
    engine = lab.engine()
    engine.put(Submit("waiting", params()))
    engine.put(Cancel("waiting"))
    engine.put(Submit("running", params()))
    engine.put(Cancel("nobody"))
    events = engine.step() + engine.step()
    engine.put(Cancel("running"))
    events += engine.step()
    assert [e.job_id for e in events if isinstance(e, Cancelled)] == ["waiting", "running"]
    assert not engine.busy


def test_a_long_prompt_is_cut_as_diffusers_cuts_it_and_says_where(lab: Lab) -> None:
    wanted = params(prompt="a red apple " * 40 + "walrus", steps=10)
    engine = lab.engine()
    engine.put(Submit("a", wanted))
    finished = drain(engine)["a"]
    assert isinstance(finished, Finished)
    assert "77 tokens" in finished.note
    picture = np.frombuffer(finished.pixels, np.uint8).reshape(128, 128, 3)
    assert psnr(picture, lab.diffusers(wanted)) >= 60


@pytest.mark.parametrize("space", ["\n", "\t", "\u3000", " \n "])
def test_the_word_that_was_cut_is_told_whatever_stands_between_words(lab: Lab, space: str) -> None:
    tokenizer = lab.family._tokenizers[0]
    fits = space.join(["cat"] * 75) + space
    assert cut_word(tokenizer, 77, fits) == ""
    assert cut_word(tokenizer, 77, f"{fits}walrus{space}cat") == "walrus"


@pytest.mark.parametrize("space", ["\x1c", "\x1f"])
def test_a_prompt_cut_where_no_word_is_gets_its_picture(lab: Lab, space: str) -> None:
    """What Python counts as white space and the tokenizer does not."""
    engine = lab.engine()
    engine.put(Submit("a", params(prompt="a " * 74 + f"{space} " * 40, steps=10)))
    finished = drain(engine)["a"]
    assert isinstance(finished, Finished)
    assert "77 tokens" in finished.note


def test_a_negative_prompt_that_is_cut_is_told_too(lab: Lab) -> None:
    engine = lab.engine()
    engine.put(Submit("a", params(prompt="a cat", negative_prompt="blue " * 100, steps=10)))
    finished = drain(engine)["a"]
    assert isinstance(finished, Finished)
    assert finished.note.startswith("negative prompt: the prompt is longer than 77 tokens")


def test_an_empty_and_an_absent_negative_prompt_are_zeros(lab: Lab) -> None:
    text = lab.family.encode_prompt("a cat")
    nothing = lab.family.encode_prompt("", like=text)
    assert not nothing.hidden.any()
    assert not nothing.pooled.any()


def test_the_loop_copies_nothing_back_to_the_host(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a copy cannot stall, so the calls that would stall a GPU are made to fail while a batch steps."""
    engine = lab.engine()
    for i in range(3):
        engine.put(Submit(str(i), params(seed=i + 1, cfg=7.0 if i else 1.0)))
    for _ in range(4):
        engine.step()
    batch = Batch(tuple(sample for sample in engine.scheduler._samples.values() if sample.prepared))
    assert len(batch.samples) >= 2

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a copy to the host")

    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    engine.residents.runner("tiny").denoise(batch)


def test_the_vae_stays_in_fp32_where_half_precision_would_overflow(checkpoint: Path) -> None:
    family = SDXL.load(checkpoint, torch.device("cpu"), torch.bfloat16)
    assert family.vae.dtype == torch.float32
    assert family.unet.dtype == torch.bfloat16
    pictures = family.decode(torch.randn(1, 4, 16, 16))
    assert torch.isfinite(pictures).all()


def test_latent_statistics_of_a_vae_are_honoured(tmp_path: Path) -> None:
    lab = Lab(make_checkpoint(tmp_path, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 1.0, 2.0]))
    for wanted in (params(steps=10), params(steps=10, image=photo(128, 128), control_strength=Decimal("0.4"))):
        (picture,) = lab.ours((0, wanted))
        assert psnr(picture, lab.diffusers(wanted)) >= 60


@pytest.mark.parametrize(
    ("file", "change"),
    [("unet/config.json", {"time_cond_proj_dim": 8}), ("model_index.json", {"requires_aesthetics_score": True})],
)
def test_a_checkpoint_that_cannot_be_honoured_is_refused(checkpoint: Path, tmp_path: Path, file: str, change: dict) -> None:
    import shutil

    folder = tmp_path / "changed"
    shutil.copytree(checkpoint, folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Unsupported, match=next(iter(change))):
        SDXL.load(folder, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("device", "dtype"), [("cuda:99", "auto"), ("toaster", "auto"), ("cpu", "float8")])
def test_a_device_or_dtype_that_is_not_here_is_refused(device: str, dtype: str) -> None:
    with pytest.raises(Unsupported):
        choose(device, dtype)


def test_two_sizes_take_turns_in_one_engine(lab: Lab) -> None:
    wanted = [params(seed=1), params(seed=2, width=192), params(seed=3, height=256), params(seed=4, width=192)]
    for picture, one in zip(lab.ours(*[(0, one) for one in wanted]), wanted, strict=True):
        assert psnr(picture, lab.diffusers(one)) >= 60
    sizes = {one.seed: (one.width, one.height) for one in wanted}
    assert all(len({sizes[int(name) + 1] for name in batch}) == 1 for batch in lab.batches)


def test_the_same_picture_asked_for_twice_is_made_once(lab: Lab) -> None:
    passes: list[int] = []

    def count(module: torch.nn.Module, args: tuple) -> None:
        passes.append(len(args[0]))

    hook = lab.family.unet.register_forward_pre_hook(count)
    told: list[str] = []
    engine = lab.engine()
    engine._started = told.append
    wanted = params(steps=10, preview_every=4)
    events: list[Event] = []
    for turn in range(40):
        for at, job_id, asked in [(0, "first", wanted), (0, "other", params(steps=10, seed=99)), (6, "second", replace(wanted))]:
            if at == turn:
                engine.put(Submit(job_id, asked))
        events += engine.step()
    hook.remove()
    ended = {event.job_id: event for event in events if isinstance(event, FINAL)}
    assert ended["first"].pixels == ended["second"].pixels != ended["other"].pixels
    assert 0 < ended["second"].inference_seconds < ended["first"].inference_seconds
    assert [event.step for event in events if isinstance(event, Preview) and event.job_id == "second"] == [8]
    assert sum(passes) <= 2 * 2 * 10, "it was made twice"
    assert sorted(told) == ["first", "other", "second"]


@pytest.mark.parametrize("leaves", ["first", "second"])
def test_one_of_two_that_wait_for_a_picture_may_leave(lab: Lab, leaves: str) -> None:
    engine = lab.engine()
    for job_id in ("first", "second"):
        engine.put(Submit(job_id, params(steps=10)))
    early = [event for _ in range(3) for event in engine.step()]
    engine.put(Cancel(leaves))
    ended = drain(engine)
    assert not [event for event in early if isinstance(event, FINAL)]
    assert isinstance(ended.pop(leaves), Cancelled)
    assert [type(event) for event in ended.values()] == [Finished]
    engine.put(Submit(leaves, params(steps=10)))
    assert isinstance(drain(engine)[leaves], Finished), "it may come again"


def test_when_all_who_wait_have_left_the_work_ends(lab: Lab) -> None:
    engine = lab.engine()
    for job_id in ("first", "second"):
        engine.put(Submit(job_id, params(steps=10)))
    engine.step()
    for job_id in ("first", "second"):
        engine.put(Cancel(job_id))
    assert {type(event) for event in engine.step()} == {Cancelled}
    assert not engine.busy


def test_two_that_wait_for_a_picture_that_cannot_be_made_both_hear_it(lab: Lab) -> None:
    engine = lab.engine()
    for job_id in ("first", "second"):
        engine.put(Submit(job_id, params(steps=10)))
    engine.step()
    engine.scheduler._samples["first"].state.latents = torch.zeros(2, 2, 5, 16, 16)
    assert {job_id: type(event) for job_id, event in drain(engine).items()} == {"first": Failed, "second": Failed}
    assert not engine._flights
    assert not engine._aboard


def test_params_are_a_frozen_promise() -> None:
    with pytest.raises(AttributeError):
        params().steps = 3  # type: ignore[misc]
    assert replace(params(), steps=3) != params()
    assert isinstance(params(), Params)


class _LostDevice:
    """A family of which every step fails as torch does once a card is lost."""

    def __init__(self, family: object, error: Exception):
        self._family, self._error = family, error

    def __getattr__(self, name: str) -> object:
        return getattr(self._family, name)

    def step(self, *tensors: object) -> None:
        raise self._error


LOST = RuntimeError("CUDA error: an illegal memory access was encountered")
FULL = torch.AcceleratorError("CUDA error: out of memory")  # the device's own word, where torch's allocator was not asked
ROOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("count", [1, 3])
def test_a_device_that_is_lost_ends_the_process_and_one_that_is_full_does_not(lab: Lab, count: int) -> None:
    def run(error: Exception) -> list[Event]:
        runner = Runner(_LostDevice(lab.family, error), lab.loras)
        engine, events = Engine(Residents.of({"tiny": runner}), CostModel()), []
        for i in range(count):
            engine.put(Submit(str(i), params(seed=i + 1, steps=2)))
        while sum(isinstance(event, FINAL) for event in events) < count:
            events += engine.step()
        return events

    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(LOST)
    for error in (ROOM, FULL):
        assert {event.name for event in run(error) if isinstance(event, Failed)} == {"engine_error"}
