"""What a LoRA file says of itself, and files that say something else; no torch."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from darkroom.engine.lora_header import Head, Unfit, read_head

Shapes = dict[str, tuple[int, ...]]
SIZES = {"F16": 2, "F32": 4, "I64": 8}


def lora(shapes: Shapes, dtype: str = "F16", **metadata: str) -> bytes:
    """A .safetensors file with these tensors, all zeros."""
    head: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, shape in shapes.items():
        count = SIZES[dtype]
        for side in shape:
            count *= side
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def kohya(*names: str, rank: int = 4, width: int = 64) -> Shapes:
    parts = {".lora_down.weight": (rank, width), ".lora_up.weight": (width, rank), ".alpha": ()}
    return {name + part: shape for name in names for part, shape in parts.items()}


def peft(*names: str, rank: int = 4, width: int = 64) -> Shapes:
    return {name + part: shape for name in names for part, shape in {".lora_A.weight": (rank, width), ".lora_B.weight": (width, rank)}.items()}


def read(content: bytes) -> Head:
    return read_head(io.BytesIO(content), len(content))


SDXL = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = SDXL.replace(".", "_")


@pytest.mark.parametrize(
    ("shapes", "families", "kind"),
    [
        (kohya(f"lora_unet_{FLAT}"), ("sdxl",), "kohya"),
        (kohya(f"lora_unet_{FLAT}", width=2048), ("sdxl",), "kohya"),
        (kohya("lora_unet_input_blocks_4_1_proj_in", "lora_te1_text_model_encoder_layers_0_mlp_fc1"), ("sdxl",), "kohya"),
        (kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", "lora_te2_text_model_encoder_layers_0_mlp_fc1"), ("sd3",), "kohya"),
        (kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1"), ("sdxl", "sd3"), "kohya"),
        (kohya("lora_te3_encoder_block_0_layer_0_SelfAttention_q"), ("sd3",), "kohya"),
        (peft(f"unet.{SDXL}", "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"), ("sdxl",), "diffusers"),
        (peft("transformer.transformer_blocks.0.attn.to_q"), ("sd3",), "diffusers"),
        ({"unet.mid_block.x.attn1.processor.to_q_lora.down.weight": (4, 8), "unet.mid_block.x.attn1.processor.to_q_lora.up.weight": (8, 4)},
         ("sdxl",), "diffusers"),
        ({"text_encoder.x.q_proj.lora_linear_layer.down.weight": (4, 8), "text_encoder.x.q_proj.lora_linear_layer.up.weight": (8, 4)},
         ("sdxl", "sd3"), "diffusers"),
        ({"unet.conv_in.lora.down.weight": (4, 4, 3, 3), "unet.conv_in.lora.up.weight": (8, 4, 1, 1)}, ("sdxl",), "diffusers"),
    ],
)  # fmt: skip
def test_family_format_and_rank_are_told_by_names_and_shapes(shapes: Shapes, families: tuple[str, ...], kind: str) -> None:
    head = read(lora(shapes, lora_adapter_metadata='{"unet.lora_alpha": 8}'))
    assert (head.families, head.format, head.rank, head.noted) == (families, kind, 4, {"unet.lora_alpha": 8})


def test_the_rank_is_the_largest() -> None:
    assert read(lora(kohya(f"lora_unet_{FLAT}") | kohya("lora_unet_mid_block_resnets_0_conv1", rank=32))).rank == 32


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (kohya(f"lora_unet_{FLAT}", width=768), "for Stable Diffusion 1,"),
        (peft(f"unet.{SDXL}", width=1024), "for Stable Diffusion 2,"),
        (kohya("lora_unet_down_blocks_0_attentions_0_proj_in"), "Stable Diffusion 1 or 2"),
        (kohya(f"lora_unet_{FLAT}", "lora_te_text_model_encoder_layers_0_mlp_fc1"), "Stable Diffusion 1 or 2"),
        (kohya("lora_unet_double_blocks_0_img_attn_qkv"), "a layer of neither SDXL nor SD 3.x"),
        (peft("transformer.single_transformer_blocks.0.attn.to_q"), "a layer of neither"),
        (kohya(f"lora_unet_{FLAT}") | kohya("lora_unet_joint_blocks_0_x_block_attn_qkv"), "family that is not served"),
        ({f"lora_unet_{FLAT}.hada_w1_a": (4, 8)}, "'lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_a' is none of their names"),
        (kohya(f"lora_unet_{FLAT}") | {f"lora_unet_{FLAT}.dora_scale": (64, 1)}, "dora_scale' is none"),
        (peft(f"unet.{SDXL}") | {f"unet.{SDXL}.lora_magnitude_vector": (64,)}, "no LoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (4, 4)}, "no LoRA"),
        (peft("base_model.model.unet.x"), "no LoRA"),
        ({f"lora_unet_{FLAT}.lora_down.weight": (4, 64)}, "half of its layer"),
        ({f"lora_unet_{FLAT}.alpha": ()}, "half of its layer"),
        ({f"lora_unet_{FLAT}.lora_down.weight": (4, 64), f"lora_unet_{FLAT}.lora_up.weight": (64, 5)}, "do not fit each other"),
        ({f"lora_unet_{FLAT}.lora_down.weight": (4,), f"lora_unet_{FLAT}.lora_up.weight": (64,)}, "do not fit each other"),
        ({f"lora_unet_{FLAT}.lora_down.weight": (0, 64), f"lora_unet_{FLAT}.lora_up.weight": (64, 0)}, "do not fit each other"),
        (kohya(f"lora_unet_{FLAT}") | {f"lora_unet_{FLAT}.alpha": (4,)}, "no single number"),
        ({}, "holds no weights"),
    ],
)
def test_what_cannot_be_used_says_why(shapes: Shapes, said: str) -> None:
    with pytest.raises(Unfit, match=said):
        read(lora(shapes))


def test_files_that_are_broken() -> None:
    whole = lora(kohya(f"lora_unet_{FLAT}"))
    for content in (b"", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\0.", whole[:6], whole[:50], whole[:-1], whole + b"\0", b"\xff" * 60):
        with pytest.raises(Unfit):
            read(content)
    with pytest.raises(Unfit, match="numbers must be of"):
        read(lora(kohya(f"lora_unet_{FLAT}"), "I64"))
    strange = ('{"unet.lora_alpha": 1, "unet.alpha_pattern": ["x"]}', '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": {"a": 1e400}}')
    for note in ("{", "[]", "7", *strange):
        with pytest.raises(Unfit, match="note"):
            read(lora(kohya(f"lora_unet_{FLAT}"), lora_adapter_metadata=note))


def test_a_head_that_promises_gigabytes_is_not_read() -> None:
    class Counting(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1) -> bytes:
            self.most = max(self.most, size or 0)
            return super().read(size)

    content = Counting((2**40).to_bytes(8, "little") + bytes(100))
    with pytest.raises(Unfit):
        read_head(content, 2**41)
    assert content.most == 8


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", f"lora_unet_{FLAT}.alpha", "a"]), inner, max_size=3), max_leaves=8)  # fmt: skip


@given(JSON)
@example({f"lora_unet_{FLAT}.alpha": {"dtype": "F16", "shape": [math.inf], "data_offsets": [0, 2]}})
def test_any_head_is_read_or_refused_never_a_fault(head: Any) -> None:
    text = json.dumps(head).encode()
    content = len(text).to_bytes(8, "little") + text
    with pytest.raises(Unfit) as caught:
        read(content)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 300


def test_it_is_read_without_torch() -> None:
    code = "import sys, darkroom.engine.lora_header, darkroom.models.loras; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
