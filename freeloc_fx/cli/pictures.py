"""Pictures of a plan's strategies: the position map and the mask. Needs matplotlib (the `cli` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from freeloc_fx.files import save_figure
from freeloc_fx.method.visibility import FULL, STRIPE
from freeloc_fx.planning.plan import Plan, PlannedSite

__all__ = ["draw"]


_GRAY = "#777777"


def draw(plan: Plan, folder: Path) -> list[Path]:
    """Draw two pictures, positions and mask, for each distinct strategy of a plan.

    Strategies that differ in their temperature only share pictures.

    Args:
        plan: of a model at one length.
        folder: where to; it is made.

    Returns:
        The files.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    groups: dict[Any, list[PlannedSite]] = {}
    for site in plan.sites:
        groups.setdefault((site.strategy.positions, site.strategy.visibility, site.grid), []).append(site)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, sites in enumerate(groups.values()):
        stem = f"{index:02d}-{sites[0].strategy.name}"
        title = f"{sites[0].strategy.name}: {len(sites)} of {len(plan.sites)} layers, {plan.grid.frames} latent frames"
        for kind, picture in (("positions", _positions), ("mask", _mask)):
            path = folder / f"{stem}-{kind}.png"
            figure = picture(sites[0], plan.trained_frames, title)
            save_figure(figure, path, dpi=110)
            written.append(path)
    return written


def _figure(title: str) -> tuple[Any, Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    return figure, left, right


def _positions(site: PlannedSite, trained: int, title: str) -> Any:
    """P over query and key frames, and P over the distance beside the trained range."""
    frames = site.grid.frames
    table = site.strategy.positions.table(frames)
    figure, left, right = _figure(title)
    limit = max(float(np.abs(table).max()), 1.0)
    image = left.imshow(table, cmap="coolwarm", vmin=-limit, vmax=limit, interpolation="nearest")
    left.set(xlabel="key frame j", ylabel="query frame i", title="remapped distance P(i, j)")
    figure.colorbar(image, ax=left, label="latent frames", shrink=0.9)

    reach = np.arange(-(frames - 1), frames)
    # A separable map gives one distance several values, so the curve is the range between the smallest and the largest.
    of = [np.diagonal(table, -d) for d in reach]
    low, high = np.array([v.min() for v in of]), np.array([v.max() for v in of])
    right.axhspan(-(trained - 1), trained - 1, color="#e8f0e0", label=f"trained: up to {trained - 1}")
    right.plot(reach, reach, "--", color=_GRAY, lw=1, label="P = d")
    right.fill_between(reach, low, high, step="mid", color="C0", alpha=0.3, lw=0)
    right.step(reach, (low + high) / 2, where="mid", color="C0", lw=1.6, label="P(d)")
    margin = max(limit, trained - 1) * 1.15
    right.set(xlabel="distance d = i - j", ylabel="P, latent frames", title="P(d)", ylim=(-margin, margin))
    right.grid(alpha=0.25)
    right.legend(loc="upper left", framealpha=0.9)
    return figure


def _mask(site: PlannedSite, trained: int, title: str) -> Any:
    """Which frames see which, and the tokens that a striped pair of frames keeps."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rule, grid = site.strategy.visibility, site.grid
    levels = rule.levels(grid.frames)
    figure, left, right = _figure(f"{title}, {site.kept:.1%} of token pairs kept")
    colours = ["#f2f2f2", "#9ecae1", "#08519c"]
    left.imshow(levels, cmap=ListedColormap(colours), vmin=0, vmax=2, interpolation="nearest")
    left.set(xlabel="key frame j", ylabel="query frame i", title="what frame i sees of frame j")
    names = ("nothing", "spatial neighbours", "every token")
    shares = [(levels == level).mean() for level in (0, STRIPE, FULL)]
    handles = [
        Patch(facecolor=c, edgecolor=_GRAY, label=f"{n} ({s:.0%})")
        for c, n, s in zip(colours, names, shares, strict=True)
    ]
    left.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    if (levels == STRIPE).any():
        right.imshow(rule.stripe(grid.height, grid.width), cmap=ListedColormap(colours[::2]), vmin=0, vmax=1,
                     interpolation="nearest")  # fmt: skip
        right.set(xlabel="key token l", ylabel="query token k")
        right.set_title(f"spatial neighbours among {grid.height}x{grid.width} tokens")
    else:
        right.axis("off")
        right.text(0.5, 0.5, "no pair of frames is limited to\nspatial neighbours", ha="center", va="center")
    return figure
