"""Plots of results with matplotlib (the `cli` extra, imported when used)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freeloc_fx.evaluation.metrics.clip import require
from freeloc_fx.files import plain_label, save_figure

from .rows import COLUMNS, Interval, Results, interval
from .summary import REFERENCES

__all__ = ["cost", "curves", "draw_all", "lengths", "svg", "trade"]


LENGTHS = ("composite", "quality", "motion", "subject_consistency", "flow", "recurrence")
"""Consistency stands between what exposes it."""


CURVES = ("composite", "constancy", "quality", "motion")


_REFERENCE, _REAL = REFERENCES


def _pyplot() -> Any:
    matplotlib = require("matplotlib", '"freeloc_fx[cli]"', "plots")
    matplotlib.use("Agg")
    # Text stays text, and equal results give equal bytes.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "freeloc"})
    return require("matplotlib.pyplot", '"freeloc_fx[cli]"', "plots")


def _style(results: Results, name: str) -> dict[str, Any]:
    """The same colour and line wherever a contestant is drawn."""
    index = results.contestants().index(name)
    strong = {"direct": "black", "profile": "tab:red"}
    # Not C3, the profile's red, and C7, real clips' gray.
    rest = [f"C{number}" for number in range(10) if number not in (3, 7)]
    return {
        "color": strong.get(name, rest[index % len(rest)]),
        "linestyle": "-" if name in strong else ("-", "--", "-.", ":")[(index // len(rest)) % 4],
        "linewidth": 2.2 if name in strong else 1.2,
    }


def lengths(results: Results, members: Sequence[str], columns: Sequence[str] = LENGTHS) -> Any:
    """Draw scores against length, intervals shaded; every line begins with the clip of the trained length.

    Args:
        results: of one model.
        members: contestants to draw.
        columns: keys of `COLUMNS`, a panel each.

    Returns:
        A matplotlib figure.
    """
    plt = _pyplot()
    rows = -(-len(columns) // 3)
    figure, axes = plt.subplots(
        rows, min(3, len(columns)), figsize=(12, 3.1 * rows), squeeze=False, constrained_layout=True
    )
    drawn = [n for n in results.contestants() if n in members]
    for axis, column in zip(axes.flat, columns, strict=False):
        for name in drawn:
            points = [
                (results.extension(n), *results.mean("direct" if n <= results.short else name, n, column))
                for n in results.lengths
            ]
            points = [p for p in points if p[1] is not None]
            if points:
                x, mean, low, high = zip(*points, strict=True)
                style = _style(results, name)
                axis.plot(x, mean, marker="o", ms=3, label=plain_label(name), **style)
                ends = ([m if e is None else e for m, e in zip(mean, end, strict=True)] for end in (low, high))
                axis.fill_between(x, *ends, color=style["color"], alpha=0.08, linewidth=0)
        best = results.mean(_REFERENCE, results.short, column)[0]
        if best is not None:
            axis.axhline(best, color="gray", ls=":", lw=1, label="VAE of true clips")
        axis.set_xscale("log")
        ticks = [results.extension(n) for n in results.lengths if n > 1]
        axis.set_xticks(ticks, [f"{round(t)}x" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("times the trained length")
        axis.set_title(COLUMNS[column].label)
        axis.grid(alpha=0.2)
    for axis in list(axes.flat)[len(columns) :]:
        axis.set_axis_off()
    _legend(figure, axes)
    return figure


def _panels(count: int) -> tuple[Any, Any]:
    """A figure, and as many of its axes as asked for; the grid's others are empty."""
    columns = min(2, max(1, count))
    lines = -(-count // columns) or 1
    figure, axes = _pyplot().subplots(
        lines, columns, figsize=(5.8 * columns, 4.6 * lines), squeeze=False, constrained_layout=True
    )
    for axis in list(axes.flat)[count:]:
        axis.set_axis_off()
    return figure, axes.flat[:count]


def cost(results: Results) -> Any:
    """Draw the composite against seconds of generation, a panel for each length beyond the trained one of which times
    are known, names in order of score.

    Args:
        results: of one model.

    Returns:
        A matplotlib figure.
    """
    _pyplot()
    from matplotlib.ticker import LogLocator, ScalarFormatter

    long = [n for n in results.lengths if n > results.short]
    timed = [n for n in long if any(results.mean(name, n, "seconds")[0] is not None for name in results.contestants(n))]
    figure, axes = _panels(len(timed))
    for axis, frames in zip(axes, timed, strict=True):
        points = []
        for name in results.contestants(frames):
            seconds, score = (results.mean(name, frames, c)[0] for c in ("seconds", "composite"))
            if seconds is not None and score is not None:
                color = _style(results, name)["color"]
                axis.plot(seconds, score, "o", ms=4, color=color)
                points.append((score, seconds, name, color))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.set_title(f"{frames} frames")
        axis.set_xlabel("seconds a video")
        axis.set_ylabel("composite")
        axis.grid(alpha=0.2)
        axis.margins(0.06, 0.06)
        _names(axis, sorted(points))
    return figure


def trade(results: Results, members: Sequence[str]) -> Any:
    """Draw constancy against motion with their intervals, a panel for each length beyond the trained one, the real
    clips as a star: what a strategy keeps, and what that costs it.

    Args:
        results: of one model.
        members: contestants to draw beside the real clips.

    Returns:
        A matplotlib figure.
    """
    long = [n for n in results.lengths if n > results.short]
    figure, axes = _panels(len(long))
    for axis, frames in zip(axes, long, strict=True):
        points = []
        for name in [n for n in results.contestants(frames) if n in members or n == _REAL]:
            motion, constancy = (results.mean(name, frames, column) for column in ("motion", "constancy"))
            if motion[0] is None or constancy[0] is None:
                continue
            color = "gray" if name == _REAL else _style(results, name)["color"]
            axis.errorbar(
                motion[0], constancy[0], xerr=_reach(motion), yerr=_reach(constancy), color=color, elinewidth=0.8,
                marker="*" if name == _REAL else "o", ms=11 if name == _REAL else 5,
            )  # fmt: skip
            points.append((constancy[0], motion[0], name, color))
        axis.set_title(f"{frames} frames")
        axis.set_xlabel(COLUMNS["motion"].label)
        axis.set_ylabel(COLUMNS["constancy"].label)
        axis.grid(alpha=0.2)
        axis.margins(0.06, 0.06)
        _names(axis, sorted(points))
    return figure


def _reach(found: Interval) -> list[list[float]] | None:
    """How far an interval reaches below and above its mean, as `errorbar` wants it; None without an interval."""
    mean, low, high = found
    return None if mean is None or low is None or high is None else [[mean - low], [high - mean]]


def _names(axis: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Names of (up, across, name, color), sorted, in a column beside the axis: at the points they would overlap."""
    low, high = axis.get_ylim()
    gap = min(0.045, 1 / max(1, len(points) - 1))
    places: list[float] = []
    for up, *_ in points:
        places.append(max((up - low) / (high - low), places[-1] + gap if places else 0.0))
    for index in range(len(places) - 1, -1, -1):  # what was pushed out at the top moves the ones below it
        places[index] = min(places[index], 1 - gap * (len(places) - 1 - index))
    for place, (up, across, name, color) in zip(places, points, strict=True):
        axis.annotate(
            plain_label(name), (across, up), (1.04, place), textcoords="axes fraction", fontsize=7, va="center",
            color=color, arrowprops={"arrowstyle": "-", "lw": 0.5, "color": color, "alpha": 0.5},
        )  # fmt: skip


def curves(results: Results, members: Sequence[str], columns: Sequence[str] = CURVES) -> Any:
    """Draw scores over the time within the video, means over clips: a row for each length, a column for each score.

    Args:
        results: of one model.
        members: contestants to draw.
        columns: scores that rows have a curve of.

    Returns:
        A matplotlib figure.
    """
    plt = _pyplot()
    long = [n for n in results.lengths if n > results.short]
    figure, axes = plt.subplots(
        max(1, len(long)), len(columns), figsize=(12, 2.6 * max(1, len(long))), squeeze=False, constrained_layout=True
    )
    for frames, line in zip(long, axes, strict=False):
        for axis, column in zip(line, columns, strict=True):
            for name in results.contestants(frames):
                if name in members:
                    at, values = curve(results, name, frames, column)
                    axis.plot(at, values, label=plain_label(name), **_style(results, name))
            axis.set_title(f"{COLUMNS[column].label}, {frames} frames", fontsize=9)
            axis.grid(alpha=0.2)
        line[0].set_xlabel("frame")
    _legend(figure, axes)
    return figure


def curve(results: Results, name: str, frames: int, column: str) -> tuple[list[float], list[float]]:
    """Average one contestant's scores over the time within the video.

    Args:
        results: of one model.
        name: the contestant.
        frames: video frames.
        column: a score that rows have a curve of.

    Returns:
        Middle frames of the stretches, and the mean over the videos that were measurable there; both empty without
        videos.
    """
    rows = [r for r in results.rows if r["contestant"] == name and r["frames"] == frames]
    # A row may be partial: of an older version, or of a run that did not measure this.
    found = [c for r in rows if (c := r.get("curve")) and len(c.get(column, ())) == len(c["at"])]
    if not found:
        return [], []
    at = found[0]["at"]
    means = [interval(c[column][i] for c in found if len(c["at"]) == len(at))[0] for i in range(len(at))]
    return list(at), [float("nan") if m is None else m for m in means]


def _legend(figure: Any, axes: Any) -> None:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found.keys(), fontsize=8, loc="outside right center")


def svg(figure: Any) -> str:
    """Write a figure as an <svg> element, without the XML head, and close it.

    Args:
        figure: a matplotlib figure.

    Returns:
        The element's text.
    """
    plt = _pyplot()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Write lengths-GROUP.png for each group, curves.png, cost.png and trade.png.

    Args:
        results: of one model.
        folder: where to; it must be there.

    Returns:
        The files.
    """
    plt = _pyplot()
    main = next(iter(results.groups.values()), ())
    figures = {f"lengths-{group}": lengths(results, members) for group, members in results.groups.items()}
    figures |= {"curves": curves(results, main), "cost": cost(results), "trade": trade(results, main)}
    written = []
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png", format="png", dpi=100, metadata={"Software": None})
        plt.close(figure)
        written.append(folder / f"{name}.png")
    return written
