"""What a probe measures on one attention call, from sampled query rows. No graphs, no S x S memory.

Sensitivities are the paper's (FreeLOC, CVPR 2026, "Layer-wise Probing Mechanism"), taken on the logits of a few rows:

    position   ALD = ||A_shift - A||_F / ||A||_F   the keys' frames shifted, A = logits
    context    S = |H' - H| / |H|                  H' = entropy where only a window of frames is visible

A row is one query token; heads are averaged within the row, rows are the sample that the standard errors speak of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..meta import RopeLayout, TokenGrid
from ..rope import angles, rotate

__all__ = ["TEMPERATURES", "ProbeSettings", "matching_temperature", "observe_rows", "sample_rows"]

TEMPERATURES = tuple(float(x) for x in np.geomspace(0.8, 10.0, 18))
"""Score factors at which a row's entropy is measured; the matching factor is interpolated between them."""


@dataclass(frozen=True)
class ProbeSettings:
    """What to shift and to hide.

    rows: query tokens sampled in each observed call. shifts: of the keys, in latent frames. window: visible |i - j| at
    most, in latent frames.
    """

    rows: int
    shifts: tuple[int, ...]
    window: int

    @classmethod
    def for_length(cls, trained_frames: int, rows: int = 16) -> ProbeSettings:
        """The paper's shifts, +-20 and +-40 for 21 trained latent frames, and a window of about the trained length."""
        reach = trained_frames - 1
        return cls(rows, (-2 * reach, -reach, reach, 2 * reach), max(1, reach // 2))


def sample_rows(grid: TokenGrid, rows: int, seed: tuple[int, ...]) -> np.ndarray:
    """Token indices, stratified over the clip: one from each of `rows` equal stretches; int64 (rows,)."""
    rng = np.random.default_rng(seed)
    count = min(rows, grid.sequence)
    edges = np.arange(count + 1) * grid.sequence // count
    return rng.integers(edges[:-1], edges[1:])


def _entropy(scores: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of softmax over the last axis."""
    log = scores.log_softmax(-1)
    return -(log.exp() * log.nan_to_num(neginf=0.0)).sum(-1)


def observe_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    rows: np.ndarray,
    layout: RopeLayout,
    grid: TokenGrid,
    scale: float | None,
    settings: ProbeSettings,
    visible: int | None = None,
) -> dict[str, np.ndarray]:
    """Measure one call.

    Args:
        q, k: (heads, tokens, head_dim) as they reach attention. rows: token indices from `sample_rows`.
        visible: "entropy" is taken with only |i - j| <= visible in view, as the layer itself then attends.

    Returns: float64 arrays: "position", "context", "entropy" of shape (rows,), "entropies" (rows, TEMPERATURES).
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    index = torch.from_numpy(rows).to(q.device)
    picked, keys = q[:, index].float(), k.float()
    logits = picked @ keys.transpose(-1, -2) * scale  # (heads, rows, tokens)
    norm = logits.square().sum(-1)
    ald = []
    for shift in settings.shifts:
        # A key moved by +shift and a query moved by -shift meet at the same distance; the query is the cheaper one.
        cos, sin = angles(layout, np.array([-float(shift)]))
        turned = rotate(picked, layout, cos.float().to(q.device), sin.float().to(q.device))
        moved = (turned - picked) @ keys.transpose(-1, -2) * scale
        ald.append((moved.square().sum(-1) / norm.clamp_min(1e-30)).sqrt().mean(0))
    entropy = _entropy(logits)
    frames = torch.arange(grid.sequence, device=q.device) // grid.tokens
    window = settings.window if visible is None else visible
    near = (frames[None, :] - (index // grid.tokens)[:, None]).abs() <= window
    windowed = _entropy(logits.masked_fill(~near, float("-inf")))
    context = ((windowed - entropy).abs() / entropy.abs().clamp_min(1e-6)).mean(0)
    entropies = torch.stack([_entropy(logits * t).mean(0) for t in TEMPERATURES], -1)
    return {
        "position": torch.stack(ald).mean(0).double().cpu().numpy(),
        "context": context.double().cpu().numpy(),
        "entropy": (entropy if visible is None else windowed).mean(0).double().cpu().numpy(),
        "entropies": entropies.double().cpu().numpy(),
    }


def matching_temperature(entropies: np.ndarray, target: float) -> float:
    """The score factor at which the mean entropy is `target`, interpolated in log factor; clipped to the measured
    range.

    Args: entropies: mean entropy at each of TEMPERATURES (falling). target: entropy at the trained length, nats.
    """
    order = np.argsort(entropies)
    return float(np.exp(np.interp(target, np.asarray(entropies)[order], np.log(TEMPERATURES)[order])))
