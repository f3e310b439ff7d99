"""The rules of the fields, against values that nobody would think of."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.checks import IMAGE_TO_IMAGE, MAX_TEXT, check
from darkroom.errors import Invalid
from darkroom.types import MAX_SEED, Lora, LoraCard, ModelCard

CARD = ModelCard("any", "sdxl", None, max_side=1024)
PIXELS = 2**20
LORAS = {
    "a": LoraCard("a", ("sdxl",), "kohya", 4), "b": LoraCard("b", ("sdxl", "sd3"), "kohya", 4), "other": LoraCard("other", ("sd3",), "diffusers", 4),
    "bad": LoraCard("bad", fault="it is cut off"),
}  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.sampled_from(["30", "0x10", "1e2", "NaN", "٣", "1_0", " 30 "])
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
FIELDS = st.sampled_from(IMAGE_TO_IMAGE) | st.text(max_size=12)


def asked(raw: dict[str, Any], textual: bool = False, image: bool = True) -> Any:
    return check(raw, CARD, PIXELS, textual=textual, image_to_image=image, loras=LORAS)


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


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ([], ()),
        ([{"name": "a"}], (Lora("a", 1.0),)),
        ([{"name": "b", "scale": -0.5}, {"name": "a", "scale": 10}], (Lora("a", 10.0), Lora("b", -0.5))),
        ([{"name": "a", "scale": -0.0}], (Lora("a", 0.0),)),
    ],
)
def test_loras_stand_in_the_order_of_their_names(given: list, means: tuple[Lora, ...]) -> None:
    assert asked({"prompt": "a cat", "loras": given}).loras == means
    assert asked({"prompt": "a cat", "loras": json.dumps(given)}, textual=True).loras == means
    assert asked({"prompt": "a cat"}).loras == ()


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        (None, ["loras must be a list of at most 8 objects"]),
        ("a", ["loras must be a list"]),
        ({"name": "a"}, ["loras must be a list"]),
        (["a"], ["loras must be a list"]),
        ([{"name": "a"}] * 9, ["loras must be a list of at most 8"]),
        ([{}], ["loras[0].name must be one of a, b"]),
        ([{"name": 7}], ["loras[0].name must be one of a, b, got 7"]),
        ([{"name": ["a"]}], ['loras[0].name must be one of a, b, got ["a"]']),
        ([{"name": "../a"}], ['loras[0].name must be one of a, b, got "../a"']),
        ([{"name": "bad"}], ["loras[0].name must be a LoRA that can be used; of this one, it is cut off"]),
        ([{"name": "other"}], ['loras[0].name must be a LoRA for sdxl, not one for sd3, got "other"']),
        ([{"name": "a"}, {"name": "a", "scale": 0.5}], ['loras[1].name must be given once, got "a" again']),
        ([{"name": "a", "scale": "0.5"}], ['loras[0].scale must be a number between -10 and 10, got "0.5"']),
        ([{"name": "a", "scale": 10.5}], ["loras[0].scale must be"]),
        ([{"name": "a", "scale": True}], ["loras[0].scale must be"]),
        ([{"name": "a", "scale": float("nan")}], ["loras[0].scale must be"]),
        ([{"name": "a", "scale": None}], ["loras[0].scale must be"]),
        ([{"name": "a", "scal": 1}], ['"scal" is not a field of loras[0], the nearest is scale; got 1']),
        ([{"name": "a", "strength": 1}], ['"strength" is not a field of loras[0], the nearest is scale;']),
        ([{"name": "a"}, {"name": "x", "scale": 99, "weight": 1}], ['"weight" is not', 'loras[1].name must be one of a, b, got "x"', "loras[1].scale must be"]),
    ],
    ids=str,
)
def test_every_fault_of_loras_is_told_with_field_rule_and_value(given: Any, faults: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        asked({"prompt": "a cat", "loras": given})
    assert len(caught.value.lines) == len(faults)
    assert all(line.startswith(fault) for line, fault in zip(caught.value.lines, faults, strict=True))
    assert caught.value.name == "invalid_loras"
    with pytest.raises(Invalid) as caught:
        asked({"prompt": "a cat", "loras": given, "steps": 7})
    assert caught.value.name == "invalid_request"
    assert len(caught.value.lines) == len(faults) + 1


@pytest.mark.parametrize("text", ["", "a", "[", '{"name": "a"}', "[" * 9000, '[{"name": "a", "name": "b"}]', "7"])
def test_loras_of_a_form_are_json(text: str) -> None:
    with pytest.raises(Invalid, match=r"loras must be a list of at most 8 objects .* as JSON text, got"):
        asked({"prompt": "a cat", "loras": text}, textual=True)


def test_where_no_lora_fits_an_error_says_so_and_many_are_not_all_listed() -> None:
    with pytest.raises(Invalid, match=r"the name of a LoRA that is here, and there is none for sdxl, got \"a\""):
        check({"prompt": "a cat", "loras": [{"name": "a"}]}, CARD, PIXELS, textual=False, image_to_image=False)
    many = {name: LoraCard(name, ("sdxl",)) for name in (f"n{i:03}" for i in range(50))}
    with pytest.raises(Invalid, match="n019 and 30 more, got"):
        check({"prompt": "a cat", "loras": [{"name": "a"}]}, CARD, PIXELS, textual=False, image_to_image=False, loras=many)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("strength", "0.6", 'control_strength, which is 1 - strength: 0.4 in place of 0.6; got "0.6"'),
        ("denoising_strength", "a", "control_strength, which is 1 - strength; got"),
        ("file", b"\xff\xd8\xff", "the nearest is image; got 3 bytes"),
        ("upload", b"\xff\xd8\xff", "the nearest is image; got 3 bytes"),
        ("num_inference_steps", "30", "the nearest is steps;"),
        ("guidance_scale", "7", "the nearest is cfg_scale;"),
        ("size", "512x512", "the nearest are width and height;"),
        ("promt", "a", "the nearest is prompt;"),
    ],
)
def test_an_unknown_field_is_told_what_was_meant(field: str, value: Any, line: str) -> None:
    with pytest.raises(Invalid) as caught:
        asked({"prompt": "a cat", field: value}, textual=True)
    assert line in caught.value.lines[0]


def test_fields_of_image_to_image_are_told_where_they_belong() -> None:
    told = {
        "image": "only of /v1/images/control",
        "strength": "control_strength of /v1/images/control",
        "file": "the field image of /v1/images/control",
    }
    for field, line in told.items():
        with pytest.raises(Invalid) as caught:
            asked({"prompt": "a cat", field: 0.5}, image=False)
        assert line in caught.value.lines[0]
