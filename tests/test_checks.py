"""The rules of the fields, against values that nobody would think of."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.checks import IMAGE_TO_IMAGE, MAX_TEXT, check
from darkroom.errors import Invalid
from darkroom.types import MAX_SEED, ModelCard

CARD = ModelCard("any", "sdxl", None, max_side=1024)
PIXELS = 2**20
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.sampled_from(["30", "0x10", "1e2", "NaN", "٣", "1_0", " 30 "])
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
FIELDS = st.sampled_from(IMAGE_TO_IMAGE) | st.text(max_size=12)


def asked(raw: dict[str, Any], textual: bool = False, image: bool = True) -> Any:
    return check(raw, CARD, PIXELS, textual=textual, image_to_image=image)


def asked_or_refused(raw: dict[str, Any], textual: bool, image: bool) -> Any:
    try:
        return asked(raw, textual, image)
    except Invalid as error:
        return error


@given(st.dictionaries(FIELDS, VALUES, max_size=8), st.booleans(), st.booleans())
def test_any_body_is_within_bounds_or_refused_field_by_field(raw: dict[str, Any], textual: bool, image: bool) -> None:
    found = asked_or_refused({"prompt": "a cat"} | raw, textual, image)
    if isinstance(found, Invalid):
        assert found.lines
        assert all(len(line) < 400 and line.isascii() for line in found.lines)
        assert found.name.startswith("invalid_")
        return
    assert found.prompt.strip()
    assert 10 <= found.steps <= 50
    assert 0 <= found.cfg <= 35
    assert 1 <= found.seed <= MAX_SEED
    for side in (found.width, found.height):
        assert side is None or (128 <= side <= 1024 and side % 64 == 0)
    assert image == (found.control_strength is not None)
    assert not image or 0 <= found.control_strength <= 1


@pytest.mark.parametrize(("value", "means"), [(30, 30), (30.0, 30), ("30", None), (30.5, None), (True, None), (None, None), ([30], None), (10**400, None)])
def test_numbers_of_json(value: Any, means: int | None) -> None:
    if means is None:
        with pytest.raises(Invalid, match="steps must be a whole number between 10 and 50, got "):
            asked({"prompt": "a cat", "steps": value})
    else:
        assert asked({"prompt": "a cat", "steps": value}).steps == means


@pytest.mark.parametrize(
    ("text", "means"),
    [("30", 30), ("30.0", 30), (" 30 ", 30), ("3e1", 30), ("", None), ("30.5", None), ("1_0", None), ("٣٠", None), ("NaN", None), ("1" * 60, None)],
)
def test_numbers_of_a_form(text: str, means: int | None) -> None:
    if means is None:
        with pytest.raises(Invalid, match="steps must be"):
            asked({"prompt": "a cat", "steps": text}, textual=True)
    else:
        assert asked({"prompt": "a cat", "steps": text}, textual=True).steps == means


def test_the_strength_is_what_was_written_not_its_float() -> None:
    assert asked({"prompt": "a cat", "control_strength": "0.71"}, textual=True).control_strength == Decimal("0.71")
    assert asked({"prompt": "a cat", "control_strength": 0.71}).control_strength == Decimal("0.71")


def test_a_drawn_seed_is_never_0_and_seldom_the_same() -> None:
    seeds = {asked({"prompt": "a cat", "seed": 0}).seed for _ in range(200)}
    assert 0 not in seeds
    assert len(seeds) > 190


def test_text_has_bounds_that_are_told() -> None:
    assert asked({"prompt": "a" * MAX_TEXT}).prompt
    for wrong in ("a" * (MAX_TEXT + 1), " \n\t", "a\0b", "\ud800"):
        with pytest.raises(Invalid, match="prompt must be"):
            asked({"prompt": wrong})


def test_pixels_are_bounded_beside_the_sides() -> None:
    tight = {"prompt": "a cat", "width": 1024, "height": 1024}
    assert asked(tight).width == 1024
    with pytest.raises(Invalid, match=r"width x height must be at most 1000000 pixels, got 1024 x 1024"):
        check(tight, CARD, 1_000_000, textual=False, image_to_image=False)


def test_a_card_brings_its_own_limits() -> None:
    turbo = ModelCard("turbo", "sdxl", None, min_steps=1, max_steps=4, default_steps=1, default_cfg=0.0)
    plain = check({"prompt": "a cat"}, turbo, PIXELS, textual=False, image_to_image=False)
    assert (plain.steps, plain.cfg) == (1, 0.0)
    with pytest.raises(Invalid, match="between 1 and 4, got 30"):
        check({"prompt": "a cat", "steps": 30}, turbo, PIXELS, textual=False, image_to_image=False)
