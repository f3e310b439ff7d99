"""`POST /v1/images/generate`, line by line of the contract."""

from __future__ import annotations

import io
import json
import sqlite3

import numpy as np
import pytest
import requests
from PIL import Image

from tests.conftest import SMALL, Server


def pixels(reply: requests.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB")).astype(int)


def errors(reply: requests.Response, status: int) -> dict:
    """The body of an error, its shape checked."""
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert set(body) == {"id", "name", "errors"}
    assert body["id"] == reply.headers["X-Request-Id"]
    assert body["errors"]
    return body


def test_both_addresses_give_the_picture(server: Server) -> None:
    a, b = server.generate(seed=5), server.generate(seed=5, base=server.host)
    assert np.abs(pixels(a) - pixels(b)).max() <= 2
    assert pixels(a).shape == (128, 128, 3)


def test_headers_of_a_picture(server: Server) -> None:
    reply = server.generate(seed=77)
    assert reply.headers["Seed"] == "77"
    assert reply.headers["Finish-Reason"] == "SUCCESS"
    assert reply.headers["X-Model"] == server.model
    assert reply.headers["X-Steps-Run"] == "10"
    assert int(reply.headers["X-Inference-Ms"]) > 0
    assert int(reply.headers["X-Queue-Ms"]) >= 0
    assert reply.headers["X-Request-Id"]


def test_defaults(server: Server) -> None:
    reply = server.generate(steps=None, width=None, height=None)
    assert pixels(reply).shape == (512, 512, 3)
    assert reply.headers["X-Steps-Run"] == "30"


def test_seed_0_and_none_are_drawn_and_the_returned_one_repeats_the_picture(server: Server) -> None:
    first, second = server.generate(seed=0), server.generate()
    assert first.headers["Seed"] != second.headers["Seed"]
    assert "0" not in (first.headers["Seed"], second.headers["Seed"])
    again = server.generate(seed=int(first.headers["Seed"]))
    assert np.abs(pixels(first) - pixels(again)).max() <= 2
    assert np.abs(pixels(first) - pixels(second)).max() > 20


def test_an_empty_negative_prompt_is_an_absent_one(server: Server) -> None:
    assert np.abs(pixels(server.generate(seed=3)) - pixels(server.generate(seed=3, negative_prompt=""))).max() <= 2
    assert np.abs(pixels(server.generate(seed=3)) - pixels(server.generate(seed=3, negative_prompt="a red apple"))).max() > 20


def test_without_guidance_the_negative_prompt_plays_no_part(server: Server) -> None:
    reference = pixels(server.generate(seed=3, cfg_scale=1))
    for cfg in (0, 0.5, 1):
        assert np.abs(reference - pixels(server.generate(seed=3, cfg_scale=cfg, negative_prompt="a cat"))).max() <= 2


@pytest.mark.parametrize(
    ("field", "good"),
    [
        ("steps", 10.0), ("steps", 11), ("width", 192), ("width", 1024), ("height", 128.0), ("cfg_scale", 35),
        ("cfg_scale", 0), ("seed", 4294967295), ("seed", 7.0),
    ],
)  # fmt: skip
def test_values_at_the_edge_are_taken(server: Server, field: str, good: object) -> None:
    pixels(server.generate(**{field: good}))


@pytest.mark.parametrize(
    ("field", "bad", "rule"),
    [
        ("steps", 9, "between 10 and 50"), ("steps", 51, "between 10 and 50"), ("steps", "30", "whole number"), ("steps", 30.5, "whole number"),
        ("steps", True, "whole number"), ("steps", [30], "whole number"), ("steps", {}, "whole number"), ("steps", 10**400, "between"),
        ("width", 100, "multiple of 64"), ("width", 64, "between 128"), ("width", 1 << 40, "between 128"), ("width", 1088, "between 128 and 1024"),
        ("height", 130, "multiple of 64"),
        ("height", "512", "multiple of 64"), ("cfg_scale", -0.1, "between 0 and 35"), ("cfg_scale", 35.01, "between 0 and 35"),
        ("cfg_scale", "7", "a number"), ("cfg_scale", True, "a number"), ("seed", -1, "between 0 and 4294967295"), ("seed", 4294967296, "between 0"),
        ("seed", 1.5, "whole number"), ("prompt", "", "1 to 10000"), ("prompt", " \n\t", "white space"), ("prompt", 7, "string"),
        ("prompt", "x" * 10001, "10000"), ("prompt", "\ud800", "Unicode"), ("negative_prompt", ["a"], "string"), ("negative_prompt", "x" * 10001, "10000"),
    ],
)  # fmt: skip
def test_a_value_that_breaks_its_rule_is_named_with_rule_and_value(server: Server, field: str, bad: object, rule: str) -> None:
    body = errors(server.generate(**{field: bad}), 422)
    assert body["name"] == f"invalid_{field}"
    assert len(body["errors"]) == 1
    assert body["errors"][0].startswith(f"{field} must be ")
    assert rule in body["errors"][0]
    assert "got " in body["errors"][0]
    assert len(body["errors"][0]) < 300


def test_a_missing_prompt_is_named(server: Server) -> None:
    assert errors(server.generate(prompt=None), 422)["name"] == "invalid_prompt"


def test_all_that_is_wrong_is_reported_at_once(server: Server) -> None:
    body = errors(server.generate(steps=7, width=100, cfg_scale=99, colour="red", prompt=""), 422)
    assert len(body["errors"]) == 5
    assert "steps must be a whole number between 10 and 50, got 7" in body["errors"]


def test_an_unknown_field_names_the_nearest(server: Server) -> None:
    for field, near in [
        ("cfg", "cfg_scale"), ("step", "steps"), ("negativeprompt", "negative_prompt"),
        ("N", "nearest is n"), ("webhook", "webhook_url"),
    ]:  # fmt: skip
        body = errors(server.generate(**{field: 1}), 422)
        assert f'"{field}"' in body["errors"][0]
        assert near in body["errors"][0]


def test_an_unknown_model_names_those_that_there_are(server: Server) -> None:
    body = errors(server.generate(model="dall-e"), 404)
    assert body["name"] == "model_not_found"
    assert server.model in body["errors"][0]
    both = errors(server.generate(model=3, steps=5), 422)
    assert [line.split()[0] for line in both["errors"]] == ["model", "steps"]
    pixels(server.generate(model=server.model))


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'"text"', b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_not_a_json_object_is_a_400(server: Server, body: bytes) -> None:
    reply = requests.post(f"{server.service_id}/v1/images/generate", data=body, headers=server.headers() | {"Content-Type": "application/json"}, timeout=30)
    errors(reply, 400)


def test_numbers_that_json_does_not_know_and_names_given_twice(server: Server) -> None:
    headers = server.headers() | {"Content-Type": "application/json"}
    tails = ['"cfg_scale": NaN', '"cfg_scale": -Infinity', '"cfg_scale": 1e400', '"steps": 10, "steps": 20', '"cfg_scale": true, "cfg_scale": 1']
    for tail in [*tails, f'"steps": 1{"0" * 5000}', f'"steps": {"[" * 300}{"]" * 300}']:
        text = f'{{"prompt": "a", {tail}}}'
        reply = requests.post(f"{server.service_id}/v1/images/generate", data=text, headers=headers, timeout=30)
        errors(reply, 422)


@pytest.mark.parametrize("depth", [450, 600, 800, 944, 5000])
def test_a_body_nested_too_deep_is_no_fault_of_ours(server: Server, depth: int) -> None:
    text = f'{{"prompt": "a", "steps": {"[" * depth}{"]" * depth}}}'
    headers = server.headers() | {"Content-Type": "application/json"}
    assert requests.post(f"{server.service_id}/v1/images/generate", data=text, headers=headers, timeout=30).status_code in (400, 422)


def test_another_media_type_is_a_415(server: Server) -> None:
    errors(requests.post(f"{server.service_id}/v1/images/generate", data={"prompt": "a"}, headers=server.headers(), timeout=30), 415)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_a_413(server: Server, chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * 3_000_000}).encode()
    data = (body[i : i + 65536] for i in range(0, len(body), 65536)) if chunked else body
    reply = requests.post(f"{server.service_id}/v1/images/generate", data=data, headers=server.headers() | {"Content-Type": "application/json"}, timeout=30)
    errors(reply, 413)


def test_a_prompt_beyond_the_language_gets_its_picture_and_a_hint(server: Server) -> None:
    reply = server.generate(prompt="a walrus ✨ in the style of 北斎")
    pixels(reply)
    assert "walrus" in reply.headers["X-Model-Note"]
    assert "X-Model-Note" not in server.generate(prompt="a red apple on a blue background").headers


def test_a_prompt_over_77_tokens_says_from_which_word_it_was_cut(server: Server) -> None:
    reply = server.generate(prompt="cat " * 75 + "walrus " + "dog " * 9)
    pixels(reply)
    assert "77 tokens and was cut from 'walrus' on" in reply.headers["X-Model-Note"]


def test_the_png_carries_its_parameters(server: Server) -> None:
    text = Image.open(io.BytesIO(server.generate(seed=9, negative_prompt="a cat").content)).text
    own = json.loads(text["darkroom"])
    assert own["prompt"] == SMALL["prompt"]
    assert own["schema"] == 1
    assert own["versions"]["darkroom"]
    assert (own["seed"], own["steps"], own["width"], own["cfg_scale"]) == (9, 10, 128, 7.0)
    assert text["parameters"].startswith(f"{SMALL['prompt']}\nNegative prompt: a cat\nSteps: 10, ")
    assert "Seed: 9, Size: 128x128" in text["parameters"]


@pytest.mark.parametrize("no", ["false", "0", "No"])
def test_a_header_leaves_the_prompt_out_of_the_file_and_the_rows(server: Server, no: str) -> None:
    reply = server.generate(headers={"X-Embed-Prompt": no}, prompt="a secret walrus")
    assert b"walrus" not in reply.content
    assert json.loads(Image.open(io.BytesIO(reply.content)).text["darkroom"])["steps"] == 10
    rows = sqlite3.connect(f"file:{server.data_dir / 'darkroom.sqlite'}?mode=ro", uri=True)
    newest = rows.execute("select parameters from jobs order by created_at desc limit 1").fetchone()[0]
    assert "walrus" not in newest
    assert json.loads(newest)["steps"] == 10


def test_a_header_that_says_neither_yes_nor_no_is_an_error(server: Server) -> None:
    assert "X-Embed-Prompt" in errors(server.generate(headers={"X-Embed-Prompt": "maybe"}), 422)["errors"][0]


@pytest.mark.parametrize("accept", ["", "*/*", "image/*", "image/png", "application/json, text/plain, */*", "text/html,image/avif,*/*;q=0.8"])
def test_the_png_comes_whenever_it_is_admitted(server: Server, accept: str) -> None:
    pixels(server.generate(headers={"Accept": accept}))


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/png;q=0, text/plain"])
def test_a_client_that_takes_no_png_is_told_so_before_any_work(server: Server, accept: str) -> None:
    assert errors(server.generate(headers={"Accept": accept}), 406)["name"] == "not_acceptable"


def test_the_png_comes_where_no_accept_is_sent(server: Server) -> None:
    headers = server.headers() | {"Content-Type": "application/json", "Accept": None}  # requests sends */* unless told not to
    pixels(requests.post(f"{server.service_id}/v1/images/generate", data=json.dumps(SMALL), headers=headers, timeout=60))
