"""RoPE is read off the captured graph: pairs, angles, pairing; refused with a reason where there is nothing to read."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DiT, analysed, captured, latents, wan, wan_inputs

from freeloc_fx import Profile, transform
from freeloc_fx.attention.rotate import angles, rotate
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.grid import RopeLayout
from freeloc_fx.method.rope.measure import measure, probes
from freeloc_fx.passes.find_attention import find_attention
from freeloc_fx.passes.infer_rope import infer_rope


def wan_omega(head_dim: int, theta: float = 10_000.0) -> np.ndarray:
    temporal = head_dim - 4 * (head_dim // 6)
    return theta ** (-2 * np.arange(temporal // 2) / temporal)


@pytest.mark.parametrize(
    ("head_dim", "heads", "batch", "size"),
    [
        (12, 2, 1, (2, 4, 4)),
        (12, 1, 2, (31, 2, 4)),
        (16, 3, 1, (7, 6, 4)),
        (24, 2, 2, (12, 4, 10)),
        (48, 1, 1, (21, 8, 6)),
        (128, 1, 1, (9, 4, 6)),
    ],
)
def test_wan(head_dim: int, heads: int, batch: int, size: tuple[int, int, int]) -> None:
    result = analysed(wan(attention_head_dim=head_dim, num_attention_heads=heads), wan_inputs(*size, batch=batch))
    video = [s for s in result if s.kind == "video"]
    assert [s.path for s in video] == ["blocks.0.attn1", "blocks.1.attn1"]
    expected = wan_omega(head_dim)
    for site in video:
        layout = site.rope
        assert layout is not None and site.grid is not None
        assert layout.head_dim == head_dim
        assert layout.pairing == "interleaved"
        assert layout.first == tuple(range(0, 2 * len(expected), 2))
        assert layout.second == tuple(range(1, 2 * len(expected), 2))
        assert len(layout.omega) == 1, "all heads agree"
        assert np.abs(np.array(layout.omega[0]) - expected).max() <= 1e-6
        assert layout.residual <= 1e-5
        assert (site.grid.frames, site.grid.height, site.grid.width) == (size[0], size[1] // 2, size[2] // 2)


@settings(max_examples=4)
@given(
    st.sampled_from([12, 18, 24, 36, 48]),
    st.integers(2, 24),
    st.integers(1, 4),
    st.integers(2, 5),
    st.integers(1, 2),
    st.integers(1, 3),
)
def test_wan_of_any_size(head_dim: int, frames: int, height: int, width: int, batch: int, heads: int) -> None:
    torch._dynamo.reset()
    model = wan(attention_head_dim=head_dim, num_attention_heads=heads, num_layers=1)
    (site,) = [s for s in analysed(model, wan_inputs(frames, 2 * height, 2 * width, batch)) if s.kind == "video"]
    assert site.rope is not None and site.grid is not None
    assert (site.grid.frames, site.grid.height, site.grid.width) == (frames, height, width)
    assert np.abs(np.array(site.rope.omega[0]) - wan_omega(head_dim)).max() <= 1e-6


@pytest.mark.parametrize("back", [False, True], ids=["", "and cast back"])
@pytest.mark.parametrize("head_dim", [12, 24, 48])
def test_wan_in_bfloat16(head_dim: int, back: bool) -> None:
    """Tables rounded to bfloat16 carry an error of 2^-9 a value; the angles come out a good deal better than that."""
    model = wan(attention_head_dim=head_dim, dtype=torch.bfloat16)
    dtype = torch.float32 if back else torch.bfloat16
    video = [s for s in analysed(model.to(dtype), wan_inputs(21, 6, 8, dtype=dtype)) if s.kind == "video"]
    assert len(video) == 2
    expected = wan_omega(head_dim)
    for site in video:
        assert site.rope is not None and site.grid is not None
        assert (site.grid.frames, site.grid.height, site.grid.width) == (21, 3, 4)
        found = dict(zip(site.rope.first, site.rope.omega[0], strict=True))
        assert set(found) <= set(range(0, 2 * len(expected), 2))
        for channel, omega in found.items():
            assert abs(omega - expected[channel // 2]) <= 1e-3
        for channel in set(range(0, 2 * len(expected), 2)) - set(found):
            assert expected[channel // 2] * 20 < 0.1, "a pair that visibly turns was missed"


def test_the_angles_are_those_of_the_table_to_float32() -> None:
    """Over a whole long clip the described rotation stays within float32 of the model's own table."""
    model = wan(attention_head_dim=24)
    (site, _) = [s for s in analysed(model, wan_inputs(40)) if s.kind == "video"]
    assert site.rope is not None
    cos, _ = angles(site.rope, np.arange(40.0))
    table = model.rope.freqs_cos[:40, : 2 * len(site.rope.first) : 2]
    assert (cos[0] - table.double()).abs().max() <= 4e-6


@pytest.mark.parametrize("how", ["plain", "late"])
@pytest.mark.parametrize("split", [(5, 2, 1), (1, 3, 3), (4, 4, 0)])
def test_rotate_half_with_an_uneven_split(split: tuple[int, int, int], how: str) -> None:
    model = DiT(split, how)
    result = analysed(model, {"hidden_states": latents(6, 3, 4)})
    assert [s.kind for s in result] == ["video", "video"], [s.reason for s in result]
    half = sum(split)
    for site in result:
        assert site.rope is not None and site.grid is not None
        assert site.rope.pairing == "half"
        assert site.rope.first == tuple(range(split[0]))
        assert site.rope.second == tuple(range(half, half + split[0]))
        assert np.abs(np.array(site.rope.omega[0]) - model.omega(0).numpy()).max() <= 1e-6
        assert site.grid.frames == 6 and site.grid.sequence == 72


def test_sites_with_the_same_rope_share_one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    from freeloc_fx.passes import infer_rope as module

    calls = []
    original = module.rope.measure_heads

    def counted(*inputs: Any) -> Any:
        calls.append(1)
        return original(*inputs)

    monkeypatch.setattr(module.rope, "measure_heads", counted)
    graph, capture = captured(wan(num_layers=3), wan_inputs(5))
    find_attention(graph, capture)
    assert infer_rope(graph, capture) == 3
    assert len(calls) == 1


# Refusals


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (DiT(None), r"no channel is rotated: there is no RoPE"),
        (DiT((0, 4, 4)), r"no channel pair turns steadily with the frame: the model has no temporal RoPE"),
        (DiT(how="unlike"), r"q and k are rotated differently"),
    ],
    ids=["no RoPE", "spatial RoPE only", "q and k unlike"],
)
def test_what_has_no_usable_temporal_rope_is_refused(model: DiT, reason: str) -> None:
    arguments = {"hidden_states": latents(6, 3, 4)}
    sites_ = analysed(model, arguments)
    assert {s.kind for s in sites_} == {"other"}
    assert all(s.rope is None for s in sites_)
    changed = transform(model, Profile(trained_frames=2, layers="vrpr"), backend="eager")
    with torch.no_grad(), pytest.raises(CaptureError, match=rf"(?s)blocks\.0\.attention: other: .*{reason}"):
        changed(**arguments)


def test_cogvideox_without_rope_is_refused() -> None:
    import diffusers

    cls: Any = diffusers.CogVideoXTransformer3DModel
    model = cls(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=False,
    ).eval()
    arguments: dict[str, Any] = {
        "hidden_states": torch.randn(1, 2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 8, 8),
        "timestep": torch.tensor([5]),
        "return_dict": False,
    }
    changed = transform(model, Profile(trained_frames=2), backend="eager")
    with torch.no_grad(), pytest.raises(CaptureError, match=r"(?s)transformer_blocks\.0\.attn1: other: .*no RoPE"):
        changed(**arguments)


def test_latte_is_refused() -> None:
    import diffusers

    cls: Any = diffusers.LatteTransformer3DModel
    model = cls(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=16,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        video_length=4,
    ).eval()
    arguments: dict[str, Any] = {
        "hidden_states": torch.randn(1, 4, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "timestep": torch.tensor([5]),
        "enable_temporal_attentions": True,
        "return_dict": False,
    }
    changed = transform(model, Profile(trained_frames=2), backend="eager")
    with (
        torch.no_grad(),
        pytest.raises(CaptureError, match=r"(?s)temporal_transformer_blocks\.0\.attn1: other: .*RoPE"),
    ):
        changed(**arguments)


# The measurement alone, without a graph


def turned(first: tuple[int, ...], second: tuple[int, ...], omega: np.ndarray, dim: int, frames: int) -> Any:
    """Probes and what a rotation of those pairs makes of them at each frame."""
    heads = len(omega)
    layout = RopeLayout(dim, first, second, tuple(tuple(map(float, row)) for row in omega))
    x = probes(heads * dim).reshape(-1, heads, 1, dim).double()
    cos, sin = angles(layout, np.arange(float(frames)))
    y = rotate(x.expand(-1, -1, frames, -1), layout, cos, sin)
    return x[:, :, 0].numpy(), y.numpy()


def test_any_pairing_is_found() -> None:
    first, second = (0, 3, 2), (5, 1, 7)
    inputs, outputs = turned(first, second, np.array([[0.5, 0.1, 0.02]]), 8, 9)
    found = measure(inputs, outputs, 1e-4)
    assert {frozenset(p) for p in zip(found.first, found.second, strict=True)} == {  # type: ignore[union-attr]
        frozenset(p) for p in zip(first, second, strict=True)
    }
    assert found.unpaired == (4, 6)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y: 2 * np.broadcast_to(x[:, :, None], y.shape), "channel 0 is scaled, not rotated"),
        (lambda x, y: np.broadcast_to(x[:, :, None], y.shape), "no channel is rotated"),
        (lambda x, y: np.abs(y), "no combination of itself and one partner"),
        (lambda x, y: 1.5 * y, "not rotated rigidly|scaled"),
    ],
    ids=["scaled", "untouched", "not linear", "rotated and scaled"],
)
def test_what_is_no_rotation_is_refused(change: Any, reason: str) -> None:
    inputs, outputs = turned((0, 2), (1, 3), np.array([[1.0, 0.3]]), 4, 9)
    found = measure(inputs, change(inputs, outputs).copy(), 1e-4)
    assert re.search(reason, str(getattr(found, "reason", found)))
