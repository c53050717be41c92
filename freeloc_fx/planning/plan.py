"""The plan: one strategy a site, decided before anything is rewritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from freeloc_fx.errors import CaptureError, PlanError
from freeloc_fx.method.build import build
from freeloc_fx.method.frame_times import reach
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.positions import VRPR, PositionMap
from freeloc_fx.method.rope.temporal import alike
from freeloc_fx.method.spec import AttentionSpec
from freeloc_fx.method.strategy import Geometry, Strategy

from .profile import Profile
from .sharing import why_unshared

if TYPE_CHECKING:
    from freeloc_fx.graph.records import AttentionSite

__all__ = [
    "Plan",
    "PlannedSite",
    "check_landed",
    "make_plan",
    "merge",
]


_Stages: TypeAlias = tuple[tuple[int, str, Mapping[str, Any]], ...]


@dataclass(frozen=True)
class PlannedSite:
    """One attention and what becomes of it.

    Args:
        path: module path of the attention call, as in "blocks.3.attn1".
        layer: index among the model's layers.
        strategy: what the attention does.
        kept: token pairs that are computed, relative to dense attention, above 0; above 1 for some mixtures.
        heads: number of heads.
        head_dim: channels of a head.
        rope: how the model's temporal RoPE turns the channels of a head.
        grid: the tokens of the sequence.
        position_sensitivity: how much the layer reacts to positions outside the trained ones; None where not known.
        context_sensitivity: how much the layer reacts to more visible tokens; None where not known.
        unshared: why it cannot work on a share of its tokens; empty where it can.
        order: spans of tokens in the order of the grid, where the model has frames among words or sound; else empty.
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
    unshared: str = ""
    order: tuple[tuple[int, int], ...] = ()

    @property
    def arithmetic(self) -> float:
        """Multiply-adds of scores and of weighted values, relative to dense attention."""
        return self.kept

    def spec(self) -> AttentionSpec:
        """Give what the attention computes, as a value."""
        return AttentionSpec(self.strategy, self.grid, self.rope)


@dataclass(frozen=True)
class Plan:
    """What `transform` will do for one input shape. Immutable; `print` shows it as a table.

    Args:
        profile: name of the profile.
        trained_frames: latent frames of the training clips.
        grid: the tokens of the sequence.
        sites: the video self-attentions in execution order.
        skipped: (path, reason) of every other attention call.
        notes: what a reader should know, such as settings outside the trained range.
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

    def same_as(self, other: Plan) -> bool:
        """Tell whether another plan of the same graph does the same, up to rounding in how RoPE was measured.

        Args:
            other: the other plan.
        """
        return len(self.sites) == len(other.sites) and all(
            (a.path, a.grid, a.order, a.strategy) == (b.path, b.grid, b.order, b.strategy) and alike(a.rope, b.rope)
            for a, b in zip(self.sites, other.sites, strict=True)
        )

    def site(self, path: str) -> PlannedSite | None:
        """Find the site at a module path.

        Args:
            path: the path, as in "blocks.3.attn1".

        Returns:
            The site, or None where there is none.
        """
        return next((site for site in self.sites if site.path == path), None)

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """The denoising steps from which another stage of some strategy runs, in rising order; the first one is 0."""
        return tuple(sorted({0, *(stop for site in self.sites for stop, _ in site.strategy.stages)}))

    def stage(self, step: int) -> Plan:
        """Give the plan of the stages that a denoising step is in.

        Args:
            step: the step, counted from 0 at the first one of a generation.
        """
        return replace(self, sites=tuple(replace(site, strategy=site.strategy.stage(step)) for site in self.sites))

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as JSON-serialisable data."""
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
        """Give the plan as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        grid = self.grid
        head = (
            f"Plan of profile {self.profile!r}: {grid.frames} latent frames of {grid.height}x{grid.width} tokens, "
            + (f"{len(grid.further)} further frames, " if grid.further else "")
            + (f"{grid.text} text tokens, " if grid.text else "")
            + f"trained on {self.trained_frames} ({self.extension:.3g}x); "
            f"{self.rewritten} of {len(self.sites)} sites rewritten"
        )
        width = max([len(s.path) for s in self.sites], default=4)
        rows = [
            f"  {s.layer:>3}  {s.path:<{width}}  {s.strategy.name:<14} {s.kept:7.1%} of pairs"
            + (f"  temperature {s.strategy.temperatures}" if s.strategy.temperatures != "1.000" else "")
            for s in self.sites
        ]
        return "\n".join([head, *rows, *(f"  note: {note}" for note in (*self.notes, *_scheduled(self.sites)))])


def merge(plans: Sequence[Plan]) -> Plan:
    """Make one plan for one call whose parts were captured one by one.

    Args:
        plans: the plans of the parts, in execution order.

    Returns:
        The plan, with the grid of the first part that holds a video self-attention.

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
    """Make the error that says what was found instead of a video self-attention."""
    reasons = "\n".join(f"  {path}: {reason}" for path, reason in skipped) or "  the graph holds no attention call"
    return CaptureError(f"no video self-attention with temporal RoPE was found; what was found instead:\n{reasons}")


def make_plan(sites: Sequence[AttentionSite], profile: Profile, *, partial: bool = False, layers: int = 0) -> Plan:
    """Decide a strategy for each video self-attention; within the trained length each stays as it is.

    Args:
        sites: the attention calls that were found, in execution order.
        profile: the strategies and settings.
        partial: whether the sites are of a part of the model, which may hold none that can be planned.
        layers: how many the model has; 0 where no lists of blocks tell.

    Returns:
        The plan; without sites where a part holds none.

    Raises:
        CaptureError: no video self-attention with temporal RoPE was found; the message collects the reasons. Or a
            strategy turns by fractions of a frame where the model's rates are not known well enough.
        ProfileError: the profile names a layer that the model does not have.
        PlanError: the profile gives a strategy to a layer that holds no video self-attention.
        StrategyError: a strategy cannot be built for this grid.
    """
    video = [site for site in sites if site.kind == "video" and site.rope is not None and site.grid is not None]
    skipped = tuple((site.path, f"{site.kind}: {site.reason}") for site in sites if site not in video)
    if not video:
        if partial:
            return Plan(profile.name, profile.trained_frames, TokenGrid(1, 1, 1), (), skipped)
        raise _nothing_found(skipped)
    if not partial:
        profile.check_layers(max(layers, max(site.layer for site in video) + 1))
    first = video[0].grid
    assert first is not None
    decisions = _Decisions(profile.at(first.frames))
    planned = tuple(_planned(site, decisions) for site in video)
    notes = decisions.notes + _left_out(sites, planned)
    plan = Plan(profile.name, profile.trained_frames, first, planned, skipped, tuple(notes))
    if not partial:
        check_landed(plan, profile)
    return plan


def _scheduled(planned: Sequence[PlannedSite]) -> list[str]:
    """Say from which denoising step on the plan's figures are, where steps differ."""
    stops = [n for s in planned for n, before in s.strategy.stages if before != replace(s.strategy, stages=())]
    return [f"this is from denoising step {max(stops)} on; the schedule has other strategies before"] if stops else []


def _left_out(sites: Sequence[AttentionSite], planned: Sequence[PlannedSite]) -> list[str]:
    """Name what stays as it is beside the sites that are planned, though it works on as many tokens as the clip has."""
    if all(site.strategy.changes_nothing for site in planned):
        return []
    least = min(site.grid.clip for site in planned)
    paths, layers = {site.path for site in planned}, {site.layer for site in planned}
    large = [s for s in sites if s.path not in paths and len(s.query_shape) == 4 and s.query_shape[2] >= least]
    others = [s for s in large if s.kind == "other" and s.query_shape[2] == s.key_shape[2]]
    notes = [
        f"{s.path} attends over {s.query_shape[2]} tokens, no fewer than the clip's, and stays as it is: {s.reason}"
        for s in others
    ]
    bare = sorted({s.layer for s in large if s.kind == "cross"} - layers - {s.layer for s in others})
    if bare:
        notes.append(
            f"the layers {bare} work on the clip's tokens without a softmax attention among them, and stay as they are"
        )
    return notes


def check_landed(plan: Plan, profile: Profile) -> None:
    """Refuse a profile that gives a layer a strategy where the layer holds nothing that could have it.

    Args:
        plan: of a whole model.
        profile: that the plan was made of.

    Raises:
        PlanError: names the layers, and those in which video self-attentions lie.
    """
    chosen = profile.at(plan.grid.frames)
    if plan.grid.frames <= profile.trained_frames:
        return
    found = sorted({site.layer for site in plan.sites})
    maps = [chosen.layers, *(stage["layers"] for stage in chosen.schedule or ())]
    named = {layer for layers in maps if isinstance(layers, Mapping) for layer in layers}
    given = {n for n in named if {chosen.strategy_name(n), *(name for _, name in chosen.stages(n))} != {"direct"}}
    lost = sorted(given - set(found))
    if lost:
        raise PlanError(
            f"layers.{lost[0]}: profile {profile.name!r} gives the layers {lost} a strategy, but no video "
            f"self-attention that can be rewritten lies in them; expected layers out of {found}"
        )


class _Decisions:
    """The strategies of a profile's layers, built once for all layers that get the same.

    Args:
        profile: the profile for the clip's length.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.notes: list[str] = []
        self._known: dict[object, tuple[Strategy, float]] = {}

    def strategy(self, layer: int, grid: TokenGrid, rope: RopeLayout) -> tuple[Strategy, float]:
        """Give a layer's strategy for a grid, and the share of token pairs that it keeps."""
        long = grid.frames > self.profile.trained_frames
        name = self.profile.strategy_name(layer) if long else "direct"
        settings = self.profile.settings(layer, grid.frames, grid.tokens) if long else {}
        stages = self._stages(layer, grid) if long else ()
        key = (name, str(settings), str(stages), grid)
        if key not in self._known:
            strategy = self._build(name, settings, stages, grid)
            self._known[key] = strategy, AttentionSpec(strategy, grid, rope).kept_pairs()
            self._note_reach(name, strategy.positions, grid)
        return self._known[key]

    def _stages(self, layer: int, grid: TokenGrid) -> _Stages:
        """Give (last denoising step, name, settings) of each entry of the schedule, for one layer."""
        return tuple(
            (stop, name, self.profile.settings(layer, grid.frames, grid.tokens, stage=index))
            for index, (stop, name) in enumerate(self.profile.stages(layer))
        )

    def _build(self, name: str, settings: Mapping[str, Any], stages: _Stages, grid: TokenGrid) -> Strategy:
        """Build a strategy with those of its first denoising steps."""
        if grid.frames <= self.profile.trained_frames:
            return Strategy()
        # Settings are for every distance that occurs, those of frames beside the clip among them.
        geometry = Geometry(self.profile.trained_frames, reach(grid.frame_times), grid.height, grid.width)
        strategy = build(name, geometry, settings)
        early = tuple((stop, build(stage, geometry, own)) for stop, stage, own in stages)
        return replace(strategy, stages=early) if early else strategy

    def _note_reach(self, name: str, positions: PositionMap, grid: TokenGrid) -> None:
        """Note explicit VRPR settings that reach positions beyond the trained ones."""
        last = self.profile.trained_frames - 1
        if isinstance(positions, VRPR) and positions.reach(grid.frame_times) > last:
            self.notes.append(
                f"{name}: explicit settings reach position {positions.reach(grid.frame_times)}, "
                f"trained positions end at {last}"
            )


def _planned(site: AttentionSite, decisions: _Decisions) -> PlannedSite:
    """Plan one site, and refuse a strategy that needs rates of RoPE which the site does not show."""
    assert site.rope is not None and site.grid is not None
    strategy, kept = decisions.strategy(site.layer, site.grid, site.rope)
    _check_rates(site, strategy)
    return PlannedSite(
        path=site.path,
        layer=site.layer,
        strategy=strategy,
        kept=kept,
        heads=site.query_shape[1],
        head_dim=site.query_shape[3],
        rope=site.rope,
        grid=site.grid,
        position_sensitivity=site.sensitivity.position if site.sensitivity else None,
        context_sensitivity=site.sensitivity.context if site.sensitivity else None,
        unshared=why_unshared(site),
        order=site.order,
    )


def _check_rates(site: AttentionSite, strategy: Strategy) -> None:
    """Refuse a strategy that turns by fractions of a frame where rates are known up to whole turns only."""
    assert site.rope is not None and site.grid is not None
    parts = [p for p in strategy.turns_by_fractions if p != "squeeze" or site.grid.text]
    fractions = [time for time in (*site.grid.uneven, *(f.time for f in site.grid.further)) if time % 1]
    if fractions and not site.rope.whole_turns and not strategy.changes_nothing:
        raise CaptureError(
            f"{site.path}: frames at the times {fractions} need RoPE's rates to be moved by parts of a frame; expected "
            "whole times, or positions that tell the rates, found rates up to whole turns per frame only"
        )
    if parts and not site.rope.whole_turns:
        raise CaptureError(
            f"{site.path}: {', '.join(parts)} need RoPE's rates; expected tables made from a count of frames in the "
            "graph, found tables that tell the rates up to whole turns per frame only (positions are given from "
            "outside, or by index). Use parts that move whole frames: vrpr, clip, group, tsa, window, temp"
        )
