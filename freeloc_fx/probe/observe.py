"""The observing operator: plain attention that also hands a few rows to a recorder.

unfused:    scaled_dot_product_attention(query=q, key=k, value=v, scale=s)
rewritten:  freeloc_fx.observe_attention(q, k, v, "recorder", "blocks.3.attn1", s)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import CaptureError
from ..plan import Plan, PlannedSite
from ..rope import angles, rotate
from .statistics import ProbeSettings, observe_rows, sample_rows

__all__ = ["Intervention", "Recorder", "observe_attention"]

_RECORDERS: dict[str, Recorder] = {}


@dataclass(frozen=True)
class Intervention:
    """What the paper's probing does to one layer: keys moved by `shift` latent frames, or only |i - j| <= `window`
    visible."""

    layer: int
    shift: int | None = None
    window: int | None = None


@dataclass
class Recorder:
    """Collects observations of one generation, layer -> list of `observe_rows` results.

    every: observe each site's calls 0, every, 2*every, ... (denoising steps, counting guidance passes).
    """

    name: str
    settings: ProbeSettings
    seed: int
    every: int = 1
    intervention: Intervention | None = None
    sites: dict[str, PlannedSite] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[int, list[Mapping[str, np.ndarray]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _RECORDERS[self.name] = self

    def close(self) -> None:
        _RECORDERS.pop(self.name, None)

    def expect(self, plan: Plan) -> None:
        """Know the sites of a captured graph."""
        self.sites |= {site.path: site for site in plan.sites}

    def meddle(self, path: str, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys (batch, heads, tokens, head_dim) and mask (tokens, tokens) of the intervention, if it is this site's."""
        site, what = self.sites[path], self.intervention
        if what is None or what.layer != site.layer:
            return k, None
        if what.shift is not None:
            cos, sin = angles(site.rope, np.array([float(what.shift)]))
            return rotate(k, site.rope, cos.float().to(k.device), sin.float().to(k.device)), None
        frames = torch.arange(site.grid.sequence, device=q.device) // site.grid.tokens
        assert what.window is not None
        return k, (frames[:, None] - frames[None]).abs() <= what.window

    def see(self, path: str, q: torch.Tensor, k: torch.Tensor, scale: float | None) -> None:
        """Record one call of one site, if it is the turn of this call. First sample of the batch."""
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        if call % self.every:
            return
        site = self.sites[path]
        rows = sample_rows(site.grid, self.settings.rows, (self.seed, site.layer, call))
        hidden = self.intervention is not None and self.intervention.layer == site.layer
        window = self.intervention.window if hidden and self.intervention is not None else None
        seen = observe_rows(q[0], k[0], rows, site.rope, site.grid, scale, self.settings, window)
        self.rows.setdefault(site.layer, []).append(seen)

    def stacked(self) -> dict[int, dict[str, np.ndarray]]:
        """Layer -> quantity -> values over all calls, rows first."""
        return {
            layer: {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
            for layer, calls in self.rows.items()
        }


@torch.library.custom_op("freeloc_fx::observe_attention", mutates_args=())
def observe_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, recorder: str, path: str, scale: float | None
) -> torch.Tensor:
    """q, k, v: (batch, heads, tokens, head_dim); the result is scaled_dot_product_attention's."""
    if recorder not in _RECORDERS:
        raise CaptureError(f"observing {path}: recorder {recorder!r} is closed")
    known = _RECORDERS[recorder]
    known.see(path, q, k, scale)
    k, mask = known.meddle(path, q, k)
    return (
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        .transpose(1, 2)
        .contiguous()
        .transpose(1, 2)
    )


@observe_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, recorder: str, path: str, scale: float | None) -> torch.Tensor:
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
