"""What watches a generation: a few rows of each attention call, and the paper's interventions in one layer.

The operator that calls it in an observing graph is `freeloc_fx.attention.observed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from freeloc_fx.attention import op
from freeloc_fx.attention.observed import close_recorder, open_recorder
from freeloc_fx.attention.rotate import angles, rotate
from freeloc_fx.attention.text import video_span
from freeloc_fx.errors import CaptureError
from freeloc_fx.method import solve
from freeloc_fx.method.grid import TokenGrid
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Strategy
from freeloc_fx.method.visibility import TSA
from freeloc_fx.planning.plan import Plan, PlannedSite

from .statistics import ProbeSettings, observe_rows, sample_rows

__all__ = ["Intervention", "Recorder"]


@dataclass(frozen=True)
class Intervention:
    """What the paper's probing does to one layer. Text keys stay where they are, in view.

    Args:
        layer: its number.
        shift: latent frames by which the video keys are moved; None where they are not.
        window: only video keys with |i - j| <= window latent frames are visible; None where all are.
    """

    layer: int
    shift: int | None = None
    window: int | None = None


@dataclass
class Recorder:
    """Collects observations of one generation, then of another (`begin`).

    Beyond the trained length "entropies" is taken at VRPR's positions.

    Args:
        name: under which graphs find it.
        settings: None for `ProbeSettings.for_length(trained)`.
        seed: of the sampled rows.
        every: observe each site's calls 0, every, 2*every, ... (denoising steps, counting guidance passes).
        intervention: what is done to one layer, if anything.
        trained: latent frames of the training clips; None for those of this generation.
        sites: path -> planned site, filled by `expect`.
        calls: path -> calls that were made so far.
        rows: layer -> list of `observe_rows` results.
        several: a site was met with more than one grid, and the last one is known.
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
    several: bool = False

    def __post_init__(self) -> None:
        open_recorder(self)

    def begin(self, intervention: Intervention | None, trained: int | None) -> None:
        """Forget what was seen, not the sites of graphs that were captured, and let graphs find it again.

        Args:
            intervention: of the generation to come, see the class.
            trained: as of the class.
        """
        self.intervention, self.trained = intervention, trained
        self.calls, self.rows = {}, {}
        open_recorder(self)

    def close(self) -> None:
        """Let graphs no longer find it."""
        close_recorder(self)

    def expect(self, plan: Plan) -> None:
        """Know the sites of a captured graph.

        Args:
            plan: the graph's plan.
        """
        found = {site.path: site for site in plan.sites}
        both = self.sites.keys() & found.keys()
        self.several |= any(self.sites[path].grid != found[path].grid for path in both)
        self.sites |= found

    def grid(self, path: str, tokens: int) -> TokenGrid:
        """Find the grid of one call; where text is left out by indexing, that of the tokens that are there.

        Args:
            path: the site.
            tokens: of the call's sequence.

        Returns:
            The grid.

        Raises:
            CaptureError: the call has another number of tokens than the graph was planned for.
        """
        grid = self.sites[path].grid
        last = tokens - grid.text_first - grid.video
        if not 0 <= last <= grid.text_last:
            raise CaptureError(
                f"observing {path}: expected queries of all {grid.sequence} tokens that its keys have, found {tokens}; "
                "attention whose keys hold text beside the video's queries cannot be probed: give a profile by hand"
            )
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
        """Compute what the model's attention gives; with the intervention, if it is this site's.

        Args:
            path: the site.
            q: (batch, heads, tokens, head_dim), as it reaches attention.
            k: as q.
            v: (batch, heads, tokens, value dim).
            scale: factor on q k; None for 1 / sqrt(head_dim).
            attn_mask: of the call as the model makes it.
            key_mask: the model's key-padding mask, for the intervention.

        Returns:
            (batch, heads, tokens, value dim).

        Raises:
            CaptureError: see `grid`.
        """
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

        Args:
            path: the site.
            q: as of `attend`.
            k: as of `attend`.
            v: as of `attend`.
            scale: as of `attend`.
            projection: (width, heads * value dim), the weight that the output is multiplied with next; None where not
                known.

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
        alone = replace(grid, before=(), after=()).frame_times
        table = solve.vrpr(trained, grid.frames).table(alone) if grid.frames > trained else None
        seen = observe_rows(q[0], k[0], rows, site.rope, grid, scale, settings, window, table, v[0], projection)
        self.rows.setdefault(site.layer, []).append(seen)

    def stacked(self) -> dict[int, dict[str, np.ndarray]]:
        """Join the observations of all calls.

        Returns:
            Layer -> quantity -> values, rows first.
        """
        return {
            layer: {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
            for layer, calls in self.rows.items()
        }
