"""What a probe measures on one attention call, from sampled query rows. No graphs, no S x S memory.

The paper's quantities (FreeLOC, CVPR 2026, "Layer-wise Probing Mechanism"), taken on the logits of a few rows:

    ald        ALD = ||A_shift - A||_F / ||A||_F   the keys' frames shifted, A = logits
    context    S = |H' - H| / |H|                  H' = entropy where only a window of frames is visible

and this project's, which says better what a layer does to the video (`bench/probe_agreement.py`): a shift of the logits
that softmax or the values do not feel is no change at all.

    output     ||O_shift - O|| / ||O||             the same shifts, O = the row's output, projected where W_o is known

A row is one query token; heads are averaged within the row (side by side in its output), rows are the sample that the
standard errors speak of. In a joint attention rows and keys are video tokens: text is neither shifted nor hidden, and
its share of the softmax is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from freeloc_fx.attention.rotate import angles, rotate
from freeloc_fx.attention.text import clip_span
from freeloc_fx.method.grid import RopeLayout, TokenGrid

__all__ = ["TEMPERATURES", "ProbeSettings", "matching_temperature", "observe_rows", "sample_rows", "spearman"]


TEMPERATURES = tuple(float(x) for x in np.geomspace(0.8, 10.0, 18))
"""Score factors at which a row's entropy is measured; the matching factor is interpolated between them."""


@dataclass(frozen=True)
class ProbeSettings:
    """What to shift and to hide.

    Args:
        rows: query tokens sampled in each observed call.
        shifts: of the keys, in latent frames.
        window: visible |i - j| at most, in latent frames.
    """

    rows: int
    shifts: tuple[int, ...]
    window: int

    @classmethod
    def for_length(cls, trained_frames: int, rows: int = 16) -> ProbeSettings:
        """Take the paper's shifts, +-20 and +-40 for 21 trained latent frames, and a window of about the trained
        length.

        Args:
            trained_frames: latent frames of the training clips.
            rows: query tokens sampled in each observed call.

        Returns:
            The settings.
        """
        reach = trained_frames - 1
        return cls(rows, (-2 * reach, -reach, reach, 2 * reach), max(1, reach // 2))


def sample_rows(grid: TokenGrid, rows: int, seed: tuple[int, ...]) -> np.ndarray:
    """Choose one video token from each of some equal stretches of the clip, which is measured by itself.

    Args:
        grid: of the call.
        rows: stretches.
        seed: of the choice.

    Returns:
        int64 (rows,), where 0 is the video's first token; fewer where the video has fewer tokens.
    """
    rng = np.random.default_rng(seed)
    count = min(rows, grid.clip)
    edges = np.arange(count + 1) * grid.clip // count
    return rng.integers(edges[:-1], edges[1:])


def _entropies(scores: torch.Tensor, factors: tuple[float, ...] = (1.0,)) -> torch.Tensor:
    """Entropy in nats of softmax(t * scores) over the last axis for each factor t; factors last.

    H = ln Z - t E[s] with Z = sum exp(t s) needs one exponential a factor; -inf hides a key.
    """
    below = (scores - scores.amax(-1, keepdim=True)).clamp_min(-1e4)
    found = []
    for factor in factors:
        mass = (below * factor).exp()
        total = mass.sum(-1)
        found.append(total.log() - factor * (mass * below).sum(-1) / total)
    return torch.stack(found, -1)


def _output(logits: torch.Tensor, values: torch.Tensor, projection: torch.Tensor | None) -> torch.Tensor:
    """What rows give: (rows, heads * value dim), or (rows, width) behind the projection."""
    joined = (logits.softmax(-1) @ values).transpose(0, 1).flatten(1)
    return joined if projection is None else joined @ projection.to(joined).T


def _remapped(
    picked: torch.Tensor, keys: torch.Tensor, frame: np.ndarray, layout: RopeLayout, grid: TokenGrid, table: np.ndarray
) -> torch.Tensor:
    """Logits, not scaled, where a query of latent frame i meets a key of latent frame j at the distance table[i, j].

    The query turns instead of the key, once for each frame of keys: by P[i, j] - (i - j).

    Args:
        picked: (heads, rows, head_dim).
        keys: (heads, video tokens, head_dim).
        frame: latent frame of each row.
        layout: of the model's RoPE.
        grid: of the call.
        table: remapped distances, float64 (latent frames, latent frames).

    Returns:
        (heads, rows, video tokens).
    """
    times = np.asarray(grid.uneven or range(grid.frames), np.float64)
    turn = table[frame] - (times[frame][:, None] - times[None])
    cos, sin = angles(layout, turn)
    spread = picked[:, :, None].expand(-1, -1, grid.frames, -1)
    turned = rotate(spread, layout, cos.float().to(keys.device), sin.float().to(keys.device))
    return torch.einsum("hrfd,hftd->hrft", turned, keys.unflatten(1, (grid.frames, grid.tokens))).flatten(2)


def observe_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    rows: np.ndarray,
    layout: RopeLayout,
    grid: TokenGrid,
    scale: float | None,
    settings: ProbeSettings,
    visible: int | None = None,
    table: np.ndarray | None = None,
    values: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Measure one call.

    Args:
        q: (heads, tokens, head_dim) as it reaches attention, text included.
        k: as q.
        rows: from `sample_rows`.
        layout: of the model's RoPE.
        grid: of the call.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        settings: what to shift and to hide.
        visible: "entropy" is taken with only |i - j| <= visible latent frames in view, as the layer itself then
            attends.
        table: remapped distances, float64 (latent frames, latent frames), under which "entropies" is taken; None: the
            model's own.
        values: (heads, tokens, value dim), as they reach attention; None: "output" is not measured.
        projection: (width, heads * value dim), the weight that the attention's output is multiplied with next; None:
            "output" is taken before it.

    Returns:
        float64 arrays: "ald", "context", "entropy", "output" of shape (rows,), "entropies" (rows, TEMPERATURES).
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    span = clip_span(grid)
    index = torch.from_numpy(rows).to(q.device)
    picked, keys = q[:, span][:, index].float(), k[:, span].float()
    logits = picked @ keys.transpose(-1, -2) * scale  # (heads, rows, video tokens)
    norm = logits.square().sum(-1)
    seen = None if values is None else values[:, span].float()
    own = None if seen is None else _output(logits, seen, projection)
    ald, change = [], []
    for shift in settings.shifts:
        # A key moved by +shift and a query moved by -shift meet at the same distance; the query is the cheaper one.
        cos, sin = angles(layout, np.array([-float(shift)]))
        turned = rotate(picked, layout, cos.float().to(q.device), sin.float().to(q.device))
        moved = (turned - picked) @ keys.transpose(-1, -2) * scale
        ald.append((moved.square().sum(-1) / norm.clamp_min(1e-30)).sqrt().mean(0))
        if seen is not None and own is not None:
            difference = _output(logits + moved, seen, projection) - own
            change.append(difference.norm(dim=-1) / own.norm(dim=-1).clamp_min(1e-30))
    entropy = _entropies(logits)[..., 0]
    frames = torch.arange(grid.clip, device=q.device) // grid.tokens
    window = settings.window if visible is None else visible
    near = (frames[None, :] - (index // grid.tokens)[:, None]).abs() <= window
    windowed = _entropies(logits.masked_fill(~near, float("-inf")))[..., 0]
    context = ((windowed - entropy).abs() / entropy.abs().clamp_min(1e-6)).mean(0)
    if table is not None:
        logits = _remapped(picked, keys, rows // grid.tokens, layout, grid, table) * scale
    entropies = _entropies(logits, TEMPERATURES).mean(0)
    output = {"output": torch.stack(change).mean(0).double().cpu().numpy()} if change else {}
    return output | {
        "ald": torch.stack(ald).mean(0).double().cpu().numpy(),
        "context": context.double().cpu().numpy(),
        "entropy": (entropy if visible is None else windowed).mean(0).double().cpu().numpy(),
        "entropies": entropies.double().cpu().numpy(),
    }


def matching_temperature(entropies: np.ndarray, target: float) -> float:
    """Find the score factor at which the mean entropy is the target, interpolated in log factor; clipped to the
    measured range.

    Args:
        entropies: mean entropy at each of TEMPERATURES (falling), nats.
        target: entropy at the trained length, nats.

    Returns:
        The factor.
    """
    order = np.argsort(entropies)
    return float(np.exp(np.interp(target, np.asarray(entropies)[order], np.log(TEMPERATURES)[order])))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Compute Spearman's rank correlation of two samples, ties at their mean rank.

    Args:
        x: (n,).
        y: (n,).

    Returns:
        The correlation; NaN where either sample is constant.
    """
    ranks = []
    for values in (np.asarray(x, float), np.asarray(y, float)):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    a, b = (rank - rank.mean() for rank in ranks)
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm else math.nan
