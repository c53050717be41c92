"""The plan: one strategy a site, decided before anything is rewritten. Immutable, printable, JSON-serialisable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .attention.spec import AttentionSpec
from .errors import CaptureError
from .meta import AttentionSite, RopeLayout, TokenGrid
from .positions import VRPR
from .profile import Profile
from .strategy import Geometry, Strategy, build

__all__ = ["Plan", "PlannedSite", "make_plan", "merge"]


@dataclass(frozen=True)
class PlannedSite:
    """One attention and what becomes of it.

    kept: share of token pairs that stay visible. arithmetic: multiply-adds of q k and weights v, relative to dense.
    """

    path: str
    layer: int
    strategy: Strategy
    kept: float
    heads: int
    head_dim: int
    rope: RopeLayout
    grid: TokenGrid
    position_sensitivity: float | None = None
    context_sensitivity: float | None = None

    @property
    def arithmetic(self) -> float:
        return self.kept

    def spec(self) -> AttentionSpec:
        return AttentionSpec(self.strategy, self.grid, self.rope)


@dataclass(frozen=True)
class Plan:
    """What `transform` will do for one input shape.

    sites: the video self-attentions in execution order. skipped: (path, reason) of every other attention call. notes:
    what a reader should know, e.g. settings outside the trained range.
    """

    profile: str
    trained_frames: int
    grid: TokenGrid
    sites: tuple[PlannedSite, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def rewritten(self) -> int:
        """Number of sites whose attention is replaced."""
        return sum(not site.strategy.changes_nothing for site in self.sites)

    @property
    def extension(self) -> float:
        """Latent frames relative to the trained number."""
        return self.grid.frames / self.trained_frames

    def site(self, path: str) -> PlannedSite | None:
        return next((site for site in self.sites if site.path == path), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "profile": self.profile,
            "trained_frames": self.trained_frames,
            "extension": self.extension,
            "grid": asdict(self.grid),
            "rewritten": self.rewritten,
            "notes": list(self.notes),
            "sites": [
                {
                    "path": s.path,
                    "layer": s.layer,
                    "strategy": s.strategy.describe(),
                    "kept_pairs": s.kept,
                    "arithmetic": s.arithmetic,
                    "heads": s.heads,
                    "head_dim": s.head_dim,
                    "rope": {
                        "pairing": s.rope.pairing,
                        "temporal_pairs": [list(p) for p in zip(s.rope.first, s.rope.second, strict=True)],
                        "omega": [list(row) for row in s.rope.omega],
                        "residual": s.rope.residual,
                    },
                    "sensitivity": {"position": s.position_sensitivity, "context": s.context_sensitivity},
                }
                for s in self.sites
            ],
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        grid = self.grid
        head = (
            f"Plan of profile {self.profile!r}: {grid.frames} latent frames of {grid.height}x{grid.width} tokens, "
            + (f"{grid.text} text tokens, " if grid.text else "")
            + f"trained on {self.trained_frames} ({self.extension:.3g}x); "
            f"{self.rewritten} of {len(self.sites)} sites rewritten"
        )
        width = max([len(s.path) for s in self.sites], default=4)
        rows = [
            f"  {s.layer:>3}  {s.path:<{width}}  {s.strategy.name:<14} {s.kept:7.1%} of pairs"
            + (f"  temperature {s.strategy.temperature:.3f}" if s.strategy.temperature != 1 else "")
            for s in self.sites
        ]
        return "\n".join([head, *rows, *(f"  note: {note}" for note in self.notes)])


def merge(plans: Sequence[Plan]) -> Plan:
    """One plan for one call whose parts were captured one by one.

    Raises:
        CaptureError: no part holds a video self-attention; the message collects the reasons.
    """
    skipped = tuple(item for plan in plans for item in plan.skipped)
    filled = [plan for plan in plans if plan.sites]
    if not filled:
        raise _nothing_found(skipped)
    sites = tuple(site for plan in filled for site in plan.sites)
    return replace(filled[0], sites=sites, skipped=skipped, notes=tuple({n: None for p in plans for n in p.notes}))


def _nothing_found(skipped: Sequence[tuple[str, str]]) -> CaptureError:
    reasons = "\n".join(f"  {path}: {reason}" for path, reason in skipped) or "  the graph holds no attention call"
    return CaptureError(f"no video self-attention with temporal RoPE was found; what was found instead:\n{reasons}")


def _check_rates(site: AttentionSite, strategy: Strategy) -> None:
    """
    Raises:
        CaptureError: the strategy turns by fractions of a frame, and the site's rates are known up to whole turns only.
    """
    assert site.rope is not None and site.grid is not None
    parts = [p for p in strategy.turns_by_fractions if p != "squeeze" or site.grid.text]
    if parts and not site.rope.whole_turns:
        raise CaptureError(
            f"{site.path}: {', '.join(parts)} need RoPE's rates; expected tables made from a count of frames in the "
            "graph, found tables that tell the rates up to whole turns per frame only (positions are given from "
            "outside, or by index). Use parts that move whole frames: vrpr, clip, group, tsa, window, temp"
        )


def make_plan(sites: Sequence[AttentionSite], profile: Profile, *, partial: bool = False) -> Plan:
    """Decide a strategy for each video site.

    Within the trained length every site stays as it is.

    Args:
        partial: the sites are of a part of the model, which may hold none that can be planned.

    Raises:
        CaptureError: no video self-attention with temporal RoPE was found; the message collects the reasons.
        ProfileError: the profile names a layer that the model does not have.
        StrategyError, SolveError: a strategy cannot be built for this grid.
    """
    video = [site for site in sites if site.kind == "video" and site.rope is not None and site.grid is not None]
    skipped = tuple((site.path, f"{site.kind}: {site.reason}") for site in sites if site not in video)
    if not video:
        if partial:
            return Plan(profile.name, profile.trained_frames, TokenGrid(1, 1, 1), (), skipped)
        raise _nothing_found(skipped)
    if not partial:
        profile.check_layers(max(site.layer for site in video) + 1)
    first = video[0].grid
    assert first is not None
    profile = profile.at(first.frames)
    planned = []
    notes: list[str] = []
    known: dict[object, tuple[Strategy, float]] = {}
    for site in video:
        assert site.grid is not None and site.rope is not None
        grid = site.grid
        long = grid.frames > profile.trained_frames
        name = profile.strategy_name(site.layer) if long else "direct"
        stages = profile.stages(site.layer) if long else ()
        settings = profile.settings(site.layer, grid.frames, grid.tokens)
        key = (name, stages, str(settings), grid)
        if key not in known:
            geometry = Geometry(profile.trained_frames, grid.frames, grid.height, grid.width)
            strategy = build(name, geometry, settings) if long else Strategy()
            if stages:
                early = tuple((stop, build(stage, geometry, settings)) for stop, stage in stages)
                strategy = replace(strategy, stages=early)
            kept = AttentionSpec(strategy, grid, site.rope).kept_pairs()
            known[key] = strategy, kept
            positions = strategy.positions
            if isinstance(positions, VRPR) and positions.reach(grid.frames) > profile.trained_frames - 1:
                notes.append(
                    f"{name}: explicit settings reach position {positions.reach(grid.frames)}, "
                    f"trained positions end at {profile.trained_frames - 1}"
                )
        strategy, kept = known[key]
        _check_rates(site, strategy)
        planned.append(
            PlannedSite(
                site.path,
                site.layer,
                strategy,
                kept,
                site.query_shape[1],
                site.query_shape[3],
                site.rope,
                grid,
                site.sensitivity.position if site.sensitivity else None,
                site.sensitivity.context if site.sensitivity else None,
            )
        )
    return Plan(profile.name, profile.trained_frames, first, tuple(planned), skipped, tuple(notes))
