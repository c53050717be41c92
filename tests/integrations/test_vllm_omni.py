"""The attention for vLLM-Omni's plugins, called as its dispatcher calls it."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.attention.reference import reference
from freeloc_fx.errors import CaptureError, ProfileError
from freeloc_fx.graph.records import AttentionSite
from freeloc_fx.integrations.vllm_omni import attention
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.planning.plan import make_plan
from freeloc_fx.planning.profile import Profile

TRAINED = 4


def tensors(frames: int, height: int, width: int, batch: int = 1, dim: int = 12) -> list[torch.Tensor]:
    """q, k, v of two heads."""
    return [torch.randn(batch, frames * height * width, 2, dim) for _ in range(3)]


def params(frames: int, height: int, width: int, **more: Any) -> dict[str, Any]:
    rows = torch.tensor([[frames, 2 * height, 2 * width]] * 2)
    return {"trained_frames": TRAINED, "latent_shape": rows, "patch_size": [1, 2, 2], **more}


def test_the_host_finds_it_by_name() -> None:
    (found,) = [e for e in entry_points(group="vllm_omni.sparse_attn") if e.name == "freeloc"]
    assert found.load() is attention


@settings(max_examples=15)
@given(
    st.integers(5, 12), st.integers(1, 3), st.integers(1, 4), st.sampled_from(["vrpr+tsa", "tsa", "vrpr", "window"]),
    st.sampled_from(["interleaved", "half"]), st.sampled_from([None, 0.4]),
)  # fmt: skip
def test_it_is_the_reference(
    frames: int, height: int, width: int, strategy: str, pairing: str, scale: float | None
) -> None:
    q, k, v = tensors(frames, height, width, batch=2)
    found = attention(
        q, k, v, params(frames, height, width, strategy=strategy, pairing=pairing), is_causal=False, softmax_scale=scale
    )
    pairs = range(2)  # 4 of 12 channels turn with the frame, as Wan shares them out
    first = tuple(2 * i for i in pairs) if pairing == "interleaved" else tuple(pairs)
    second = tuple(i + (1 if pairing == "interleaved" else 6) for i in first)
    rope = RopeLayout(12, first, second, ((1.0, 1e4**-0.5),))
    shape = (2, 2, frames * height * width, 12)
    site = AttentionSite("any", 0, "video", shape, shape, grid=TokenGrid(frames, height, width), rope=rope)
    (planned,) = make_plan([site], Profile(trained_frames=TRAINED, layers=strategy)).sites
    expected = reference(*(x.transpose(1, 2) for x in (q, k, v)), planned.spec(), scale).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_within_the_trained_length_it_is_plain_attention() -> None:
    q, k, v = tensors(TRAINED, 2, 3)
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.equal(attention(q, k, v, params(TRAINED, 2, 3)), plain)


def test_a_strategy_that_follows_steps_needs_the_step() -> None:
    q, k, v = tensors(9, 2, 3)
    given = params(9, 2, 3, strategy="anchors")
    with pytest.raises(ProfileError, match="anchors follows denoising steps, and params have no denoise_step_idx"):
        attention(q, k, v, given)
    first, second = (attention(q, k, v, given | {"denoise_step_idx": step}) for step in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"latent_shape": None}, ProfileError, "expected params with latent_shape"),
        ({"latent_shape": [[9, 4, 6], [8, 4, 6]]}, ProfileError, "the same three sizes for every sample"),
        ({"latent_shape": [18, 4, 6]}, CaptureError, r"queries and keys of 18 x 2 x 3 tokens, found 54 and 54"),
        ({"trained_frames": 0}, ProfileError, "trained_frames"),
        ({"temporal_channels": 5}, ProfileError, "even number of temporal_channels up to 12"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    q, k, v = tensors(9, 2, 3)
    with pytest.raises(error, match=message):
        attention(q, k, v, params(9, 2, 3) | change)


def test_causal_attention_and_a_missing_length_are_refused() -> None:
    q, k, v = tensors(9, 2, 3)
    with pytest.raises(CaptureError, match="causal"):
        attention(q, k, v, params(9, 2, 3), is_causal=True)
    with pytest.raises(ProfileError, match="expected params with trained_frames"):
        attention(q, k, v, {"latent_shape": [9, 4, 6], "patch_size": [1, 2, 2]})


def test_a_block_that_the_host_compiles_goes_on_around_it() -> None:
    """Not into it: its plans are no part of a graph."""

    def block(x: torch.Tensor, frames: int) -> torch.Tensor:
        return attention(x.sin(), x, x, params(frames, 2, 3), softmax_scale=0.3) + x

    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(block, backend=backend, dynamic=True)
    for frames in (TRAINED, 9):
        x = torch.randn(1, frames * 6, 2, 12)
        torch.testing.assert_close(compiled(x, frames), block(x, frames), rtol=0, atol=0)
    assert 2 <= len(graphs) <= 4, "before and after the attention, once or for each length"
