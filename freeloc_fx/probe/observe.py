"""The observing operator: plain attention that also hands a few rows to a recorder.

unfused:    scaled_dot_product_attention(query=q, key=k, value=v, scale=s)
rewritten:  freeloc_fx.observe_attention(q, k, v, "recorder", "blocks.3.attn1", s, attn_mask, key_mask, weight)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from .. import solve
from ..attention import op
from ..attention.spec import AttentionSpec
from ..attention.text import video_span
from ..errors import CaptureError
from ..meta import TokenGrid
from ..plan import Plan, PlannedSite
from ..rope import angles, rotate
from ..strategy import Strategy
from ..visibility import TSA
from .statistics import ProbeSettings, observe_rows, sample_rows

__all__ = ["Intervention", "Recorder", "observe_attention"]

_RECORDERS: dict[str, Recorder] = {}


@dataclass(frozen=True)
class Intervention:
    """What the paper's probing does to one layer: video keys moved by `shift` latent frames, or only those with
    |i - j| <= `window` visible. Text keys stay where they are, in view."""

    layer: int
    shift: int | None = None
    window: int | None = None


@dataclass
class Recorder:
    """Collects observations of one generation, layer -> list of `observe_rows` results.

    settings: None: `ProbeSettings.for_length(trained)`. every: observe each site's calls 0, every, 2*every, ...
    (denoising steps, counting guidance passes). trained: latent frames of the training clips; None: those of this
    generation. Beyond them "entropies" is taken at the positions that VRPR gives.
    """

    name: str
    settings: ProbeSettings | None
    seed: int
    every: int = 1
    intervention: Intervention | None = None
    trained: int | None = None
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

    def grid(self, path: str, tokens: int) -> TokenGrid:
        """The grid of one call; where text is left out by indexing, the tokens that are there.

        Raises:
            CaptureError: the call has another number of tokens than the graph was planned for.
        """
        grid = self.sites[path].grid
        last = tokens - grid.text_first - grid.video
        if not 0 <= last <= grid.text_last:
            raise CaptureError(f"observing {path}: expected {grid.sequence} tokens, found {tokens}")
        return grid if last == grid.text_last else replace(grid, text_last=last)

    @property
    def frames(self) -> int:
        """Latent frames of the sites that were watched, in tokens' time steps."""
        return max(site.grid.frames for site in self.sites.values())

    def attend(
        self,
        path: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None,
        attn_mask: torch.Tensor | None,
        key_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the model's attention gives; with the intervention, if it is this site's."""
        site, what = self.sites[path], self.intervention
        if what is not None and what.layer == site.layer:
            grid = self.grid(path, q.shape[2])
            if what.window is not None:
                rule = TSA(what.window + 1, what.window + 1, 1, sink=False)  # one tier: |i - j| < window + 1
                spec = AttentionSpec(Strategy(f"window {what.window}", visibility=rule), grid, site.rope)
                return op.run(op.choose("auto", q.device), q, k, v, spec, scale, key_mask)
            assert what.shift is not None
            cos, sin = angles(site.rope, np.array([float(what.shift)]))
            span, k = video_span(grid), k.clone()
            k[:, :, span] = rotate(k[:, :, span], site.rope, cos.float().to(k.device), sin.float().to(k.device))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale)

    def see(
        self,
        path: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None,
        projection: torch.Tensor | None,
    ) -> None:
        """Record one call of one site, if it is the turn of this call: the first sample of the batch.

        Args: as of `observe_attention`.

        Raises:
            CaptureError: see `grid`.
        """
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        if call % self.every:
            return
        site, grid = self.sites[path], self.grid(path, q.shape[2])
        trained = self.trained or grid.frames
        settings = self.settings or ProbeSettings.for_length(trained)
        rows = sample_rows(grid, settings.rows, (self.seed, site.layer, call))
        what = self.intervention
        window = what.window if what is not None and what.layer == site.layer else None
        table = solve.vrpr(trained, grid.frames).table(grid.frames) if grid.frames > trained else None
        seen = observe_rows(q[0], k[0], rows, site.rope, grid, scale, settings, window, table, v[0], projection)
        self.rows.setdefault(site.layer, []).append(seen)

    def stacked(self) -> dict[int, dict[str, np.ndarray]]:
        """Layer -> quantity -> values over all calls, rows first."""
        return {
            layer: {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
            for layer, calls in self.rows.items()
        }


@torch.library.custom_op("freeloc_fx::observe_attention", mutates_args=())
def observe_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    recorder: str,
    path: str,
    scale: float | None,
    attn_mask: torch.Tensor | None = None,
    key_mask: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> torch.Tensor:
    """q, k, v: (batch, heads, tokens, head_dim); the result is scaled_dot_product_attention's.

    attn_mask: the model's own, as it passes it. key_mask: the padding of single keys behind it, `text.valid_keys`.
    projection: weight (width, heads * head_dim) of the linear layer that the result goes to, only looked at.
    """
    if recorder not in _RECORDERS:
        raise CaptureError(f"observing {path}: recorder {recorder!r} is closed")
    known = _RECORDERS[recorder]
    known.see(path, q, k, v, scale, projection)
    out = known.attend(path, q, k, v, scale, attn_mask, key_mask)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@observe_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    recorder: str,
    path: str,
    scale: float | None,
    attn_mask: torch.Tensor | None = None,
    key_mask: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> torch.Tensor:
    batch, heads, tokens, dim = q.shape
    return q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
