"""An attention for vLLM-Omni's plugins of sparse attention, under the name `freeloc`.

vLLM-Omni finds it by its entry point once this package is installed beside it, and calls it for the self-attentions of
the role that names it:

    attention: backend SPARSE_ATTN, extra {"backend": "freeloc", "params": {"trained_frames": 21, "strategy": "tsa"}}

It sees one attention at a time, after the model's RoPE, and not which layer it is: every layer has one strategy, and
how RoPE turns is told (the defaults are Wan's) rather than measured. Where the whole model is at hand, transform it
instead, before vLLM-Omni compiles its blocks: that measures all of this and goes by layer.

    pipeline.transformer = freeloc_fx.transform(pipeline.transformer, profile)

vLLM-Omni compiles its blocks: the graph of a block is left around this attention, so a model of its that demands full
graphs (Ming-Image) cannot have it. How it was tried on the real thing: bench/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from freeloc_fx.attention.op import choose, run
from freeloc_fx.errors import CaptureError, ProfileError
from freeloc_fx.graph.records import AttentionSite
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.planning.plan import make_plan
from freeloc_fx.planning.profile import Profile

__all__ = ["attention"]


@torch.compiler.disable(reason="freeloc plans each shape once, and runs an operator of its own")
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    params: Mapping[str, Any],
    is_causal: bool = False,
    softmax_scale: float | None = None,
) -> torch.Tensor:
    """Attend with FreeLOC's strategies where the clip is longer than the trained ones, plainly where it is not.

    Args:
        query: (batch, tokens, heads, head_dim), floating point, turned by the model's RoPE.
        key: as query.
        value: as query.
        params: "trained_frames" (latent frames of the training clips) and "strategy" (default "vrpr+tsa"), as
            configured; "latent_shape" and "patch_size", frames, rows and columns each, as the host gives them, one row
            a sample or one for all; "denoise_step_idx" for strategies that follow it; RoPE's "temporal_channels" of
            a head (default Wan's share), "theta" (default 10000) and "pairing" ("interleaved" or "half").
        is_causal: must be False.
        softmax_scale: factor on q k; None for 1 / sqrt(head_dim).

    Returns:
        (batch, tokens, heads, head_dim) in query's dtype.

    Raises:
        CaptureError: the attention is causal, or its tokens are not the clip's.
        ProfileError: a parameter is missing or malformed.
    """
    if is_causal:
        raise CaptureError("freeloc: expected attention over a whole clip, found causal attention")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    frames, height, width = _positions(params)
    if q.shape != k.shape or q.shape[2] != frames * height * width:
        raise CaptureError(
            f"freeloc: expected queries and keys of {frames} x {height} x {width} tokens, found {q.shape[2]} and "
            f"{k.shape[2]}: text among them, or tokens shared out over processes"
        )
    spec = _spec(params, q, TokenGrid(frames, height, width))
    if spec is None:
        out = F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    else:
        out = run(choose("auto", q.device), q, k, v, spec, softmax_scale)
    return out.transpose(1, 2)


def _spec(params: Mapping[str, Any], q: torch.Tensor, grid: TokenGrid) -> AttentionSpec | None:
    """What is to be computed; None for plain attention."""
    _, _, _, dim = shape = tuple(q.shape)
    if "trained_frames" not in params:
        raise ProfileError("freeloc: expected params with trained_frames, the latent frames of the training clips")
    profile = Profile(trained_frames=params["trained_frames"], layers=params.get("strategy", "vrpr+tsa"))
    rope = _rope(params, dim)
    site = AttentionSite("attention", 0, "video", shape, shape, grid=grid, rope=rope)  # type: ignore[arg-type]
    (planned,) = make_plan([site], profile).sites
    strategy = planned.strategy
    if strategy.changes_nothing:
        return None
    if not strategy.follows_steps:
        return planned.spec()
    if "denoise_step_idx" not in params:
        raise ProfileError(f"freeloc: {strategy.name} follows denoising steps, and params have no denoise_step_idx")
    return planned.spec().at(_whole("denoise_step_idx", params["denoise_step_idx"]))


def _rope(params: Mapping[str, Any], dim: int) -> RopeLayout:
    temporal = _whole("temporal_channels", params.get("temporal_channels", dim - 4 * (dim // 6)))
    pairing = params.get("pairing", "interleaved")
    if pairing not in ("interleaved", "half") or temporal % 2 or not 0 < temporal <= dim:
        raise ProfileError(
            f"freeloc: expected pairing interleaved or half and an even number of temporal_channels up to {dim}, found "
            f"{pairing!r} and {temporal}"
        )
    pairs = temporal // 2
    first = range(0, temporal, 2) if pairing == "interleaved" else range(pairs)
    step = 1 if pairing == "interleaved" else dim // 2
    theta = float(params.get("theta", 10_000.0))
    omega = tuple(theta ** (-2 * i / temporal) for i in range(pairs))
    return RopeLayout(dim, tuple(first), tuple(i + step for i in first), (omega,))


def _positions(params: Mapping[str, Any]) -> tuple[int, int, int]:
    missing = [name for name in ("latent_shape", "patch_size") if params.get(name) is None]
    if missing:
        raise ProfileError(f"freeloc: expected params with {' and '.join(missing)}, which the model's host publishes")
    sizes, patches = (_triple(name, params[name]) for name in ("latent_shape", "patch_size"))
    frames, height, width = (size // patch for size, patch in zip(sizes, patches, strict=True))
    return frames, height, width


def _triple(name: str, value: Any) -> tuple[int, int, int]:
    """Frames, rows and columns, the same for every sample."""
    rows = torch.as_tensor(value).reshape(-1, 3)
    if rows.ndim != 2 or not len(rows) or not bool((rows == rows[:1]).all()):
        raise ProfileError(f"freeloc: {name}: expected the same three sizes for every sample, found {rows.tolist()}")
    frames, height, width = (int(n) for n in rows[0])
    return frames, height, width


def _whole(name: str, value: Any) -> int:
    number = int(value[0] if isinstance(value, torch.Tensor) and value.ndim else value)
    if number < 0:
        raise ProfileError(f"freeloc: {name}: expected a number of at least 0, found {number}")
    return number
