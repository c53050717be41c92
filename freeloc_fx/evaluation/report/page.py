"""One HTML page of results that needs nothing beside it: styles, script, plots and videos are inside.

Needs Jinja2 (which torch brings) and matplotlib (the `cli` extra).
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from freeloc_fx.errors import FreelocError
from freeloc_fx.evaluation.metrics.clip import require

from . import plots
from .claims import FEWEST, MARGIN, Verdict, judge_claims
from .rows import COLUMNS, Results
from .summary import AGAINST, REFERENCES, TRUTH, VBENCH, describe, finding_words, number, summarise

__all__ = ["PageError", "render"]


_MOST = 64 * 2**20  # bytes of video in a page; browsers get slow beyond


class PageError(FreelocError, ValueError):
    """The page cannot be made: a video is missing, no mp4, or all of them are too large."""


class _Budget:
    """Bytes of video that a page may hold, and how many are left."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most


def render(results: Sequence[Results], videos: str | os.PathLike[str] | None = None, most: int = _MOST) -> str:
    """Make the page.

    Args:
        results: one for each model.
        videos: folder of more .mp4 files to show, grouped by the folder's name; None: only those of the results.
        most: bytes of all videos together.

    Returns:
        The page as HTML text.

    Raises:
        PageError: no results and no videos, or as its docstring says.
        DependencyError: Jinja2 or matplotlib is missing.
    """
    jinja2 = require("jinja2", "jinja2", "the report's page")
    budget = _Budget(most)
    models = [_model(r, budget) for r in results]
    extra = _folder(Path(videos), budget) if videos is not None else []
    if not models and not extra:
        raise PageError("report: expected results or videos, found neither")
    template = (importlib.resources.files(__package__) / "page.html.j2").read_text(encoding="utf-8")
    # Everything is escaped but what is marked safe: the SVG that matplotlib made.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made: str = environment.from_string(template).render(
        models=models,
        extra=extra,
        margin=MARGIN,
        fewest=FEWEST,
        date=datetime.now(timezone.utc).date().isoformat(),
    )
    return made


def _model(results: Results, budget: _Budget) -> dict[str, Any]:
    videos = _videos(results, budget)  # first: it is what may fail
    records, verdicts = summarise(results), judge_claims(results)
    main = next(iter(results.groups.values()), ())
    return {
        "name": results.model,
        "short": results.short,
        "lengths": results.lengths,
        "claims": [_claim(v, results) for v in verdicts],
        "best": _best(results),
        "groups": [
            {
                "name": group,
                "members": [(m, results.models[m]) for m in members if m in results.models],
                "plot": plots.svg(plots.lengths(results, members)),
                "tables": [_table(records, members, TRUTH, True), _table(records, members, VBENCH, False)],
            }
            for group, members in results.groups.items()
        ],
        "curves": plots.svg(plots.curves(results, main)),
        "cost": plots.svg(plots.cost(results)),
        "trade": plots.svg(plots.trade(results, main)),
        "videos": videos,
        "refused": dict(results.refused),
        "environment": dict(results.environment),
        "settings": {k: v if isinstance(v, str) else json.dumps(v) for k, v in results.settings.items()},
    }


def _claim(verdict: Verdict, results: Results) -> dict[str, Any]:
    return {
        "text": verdict.claim.text,
        "source": verdict.claim.source,
        "verdict": verdict.overall,
        "fails": [f"{f.comparison.against} ({COLUMNS[f.comparison.column].label})" for f in verdict.exceptions],
        "figures": [finding_words(f) for f in verdict.findings],
        "lengths": [
            (n, verdict.lengths[n][0], [finding_words(f) for f in verdict.lengths[n][1]])
            if n in verdict.lengths
            else (n, "", [])
            for n in results.lengths
        ],
    }


def _best(results: Results) -> list[dict[str, Any]]:
    """Of each long length the contestant with the best mean composite, and the profile's beside it."""
    found = []
    for frames in (n for n in results.lengths if n > results.short):
        means = {n: results.mean(n, frames, "composite") for n in results.contestants(frames)}
        means = {n: m for n, m in means.items() if m[0] is not None}
        if means:
            best = max(means, key=lambda n: means[n][0] or 0.0)
            column = COLUMNS["composite"]
            found.append(
                {
                    "frames": frames,
                    "best": best,
                    "score": describe(means[best], column),
                    "profile": describe(means.get("profile", (None, None, None)), column),
                }
            )
    return found


def _table(
    records: Sequence[dict[str, Any]], members: Sequence[str], columns: Sequence[str], paired: bool
) -> dict[str, Any]:
    """Head and rows of cells: text, what it sorts by, and the interval as a title."""
    head = [(COLUMNS[c].label, COLUMNS[c].help, COLUMNS[c].unit) for c in columns]
    extra = [(other, column) for other in AGAINST for column in ("composite", "motion")] if paired else []
    head += [(f"{COLUMNS[c].label} - {o}", f"difference from {o} within a clip, 95% interval", "") for o, c in extra]
    rows = []
    for record in records:
        if record["contestant"] not in (*members, *REFERENCES):
            continue
        cells = [
            {
                "text": describe(found, COLUMNS[c]) if c == "composite" else number(found[0], COLUMNS[c]),
                "sort": found[0],
                "title": describe(found, COLUMNS[c]),
            }
            for c in columns
            for found in (record["means"][c],)
        ]
        for other, column in extra:
            found = record["differences"].get(other, {}).get(column, (None, None, None))
            words = describe(found, COLUMNS[column], signed=True)
            cells.append({"text": words, "sort": found[0], "title": words})
        rows.append(
            {"frames": record["frames"], "name": record["contestant"], "clips": record["clips"], "cells": cells}
        )
    return {"head": head, "rows": rows}


def _videos(results: Results, budget: _Budget) -> list[dict[str, Any]]:
    """Groups of videos that play together: one a length and clip."""
    groups: dict[tuple[int, int], list[dict[str, str]]] = {}
    order = {name: place for place, name in enumerate(results.contestants())}  # one may have a video and no row
    for video in sorted(results.videos, key=lambda v: (v["frames"], v["seed"], order.get(v["contestant"], len(order)))):
        place = groups.setdefault((video["frames"], video["seed"]), [])
        place.append({"name": video["contestant"], "data": _embed(results.folder / video["file"], budget)})
    prompts = results.settings.get("prompts", {})
    return [
        {"title": f"{frames} frames", "caption": prompts.get(str(seed), f"clip {seed}"), "videos": found}
        for (frames, seed), found in groups.items()
    ]


def _folder(folder: Path, budget: _Budget) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
    if not files:
        found = "none" if folder.is_dir() else "no folder"
        raise PageError(f"{folder}: expected a folder with .mp4 files, found {found}")
    videos = [{"name": file.stem, "data": _embed(file, budget)} for file in files]
    return [{"title": folder.name, "caption": "", "videos": videos}]


def _embed(path: Path, budget: _Budget) -> str:
    """An mp4 as a data URL."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PageError(f"{path}: the video cannot be read ({error.strerror})") from error
    if data[4:8] != b"ftyp":
        raise PageError(f"{path}: expected an mp4 file, found one that begins with {data[:8]!r}")
    budget.left -= len(data)
    if budget.left < 0:
        most = f"{budget.most / 2**20:g} MB"
        raise PageError(f"{path}: the videos are together larger than the page's {most}; keep fewer, or allow more")
    return "data:video/mp4;base64," + base64.b64encode(data).decode("ascii")
