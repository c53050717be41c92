"""Tables of results: means with intervals, and differences within a clip, as JSON data and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .claims import Finding, Verdict
from .rows import COLUMNS, Column, Interval, Results, interval, with_companions

__all__ = [
    "AGAINST",
    "PAIRED",
    "REFERENCES",
    "TRUTH",
    "VBENCH",
    "describe",
    "markdown",
    "measured",
    "number",
    "summarise",
]


TRUTH = (
    "composite", "seconds", "memory", "quality", "constancy", "permanence", "pops", "motion", "frozen", "identity",
    "presence", "shape_accuracy", "sharpness", "area", "speed", "psnr", "foreign", "scroll_error", "loop",
    "repeated", "composite_before",
)  # fmt: skip
"""What a video costs stands right beside its quality."""


VBENCH = tuple(
    with_companions(
        ("subject_consistency", "background_consistency", "motion_smoothness", "no_repeat", "imaging_quality")
    )
)


PAIRED = ("composite", "quality", "constancy", "motion")
"""Columns whose differences within a clip are shown."""


REFERENCES = ("reconstruction", "real")
"""Contestants that no sampler made: the VAE on the true clip, and the true clip itself."""


AGAINST = ("direct", "profile")
"""What they are differences from."""


def summarise(results: Results) -> list[dict[str, Any]]:
    """Average the results.

    Args:
        results: of one model.

    Returns:
        One record for each length and contestant: "frames", "contestant", "clips", "means" column -> [mean, low, high],
        and "differences" other -> column -> [mean, low, high] within a clip.
    """
    records = []
    for frames in results.lengths:
        for name in results.contestants(frames):
            records.append(
                {
                    "frames": frames,
                    "contestant": name,
                    "clips": results.clips(name, frames),
                    "means": {column: list(results.mean(name, frames, column)) for column in COLUMNS},
                    "differences": {
                        other: {
                            column: list(interval(results.differences(name, other, frames, column).values()))
                            for column in PAIRED
                        }
                        for other in AGAINST
                        if other != name
                    },
                }
            )
    return records


def measured(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Leave out the columns that no record has a value of: rows of before know fewer.

    Args:
        records: some of what `summarise` gives.
        columns: keys of `COLUMNS`.

    Returns:
        The others, in order.
    """
    return [c for c in columns if any(record["means"][c][0] is not None for record in records)]


def number(value: float | None, column: Column, signed: bool = False) -> str:
    """Write one value for a table.

    Args:
        value: None where nothing was measurable.
        column: whose value it is.
        signed: with a plus sign.

    Returns:
        The text, "-" for None.
    """
    return "-" if value is None else f"{value:{'+' if signed else ''}.{column.digits}f}"


def describe(found: Sequence[float | None], column: Column, signed: bool = False) -> str:
    """Write a mean with its interval, the mean alone of a single clip.

    Args:
        found: mean, low and high.
        column: whose values they are.
        signed: with a plus sign.

    Returns:
        Mean [low, high].
    """
    mean, low, high = found
    if low is None:
        return number(mean, column, signed)
    return f"{number(mean, column, signed)} [{number(low, column, signed)}, {number(high, column, signed)}]"


def finding_words(finding: Finding) -> str:
    """Write the figures of one comparison in a line.

    Args:
        finding: the comparison decided.

    Returns:
        The line.
    """
    c, column = finding.comparison, COLUMNS[finding.comparison.column]
    mine, other = (number(v, column) for v in finding.values)
    factor = "" if c.factor == 1 else f"{c.factor:g} x "
    place = " at the trained length" if c.short else ""
    sign = describe(finding.difference, column, signed=True)
    return (
        f"{column.label}: {c.contestant} {mine}, {factor}{c.against}{place} {other}; difference {sign}, "
        f"{finding.clips} clips: {c.sense}? {finding.verdict}"
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]


def markdown(results: Results, records: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> str:
    """Write claims, then for each group of contestants the scores against the prompt and those of VBench's kind.

    Args:
        results: of one model.
        records: what `summarise` gives.
        verdicts: what `judge_claims` gives.

    Returns:
        The Markdown text.
    """
    lines = [f"# {results.model}", "", "## Claims", ""]
    lines += _head(("claim", "source", "verdict", *(f"{n} frames" for n in results.lengths), "figures"))
    for verdict in verdicts:
        words = [verdict.lengths[n][0] if n in verdict.lengths else "" for n in results.lengths]
        figures = "<br>".join(finding_words(f) for f in verdict.findings)
        lines.append(_row([verdict.claim.text, verdict.claim.source, f"**{verdict.overall}**", *words, figures]))
    for group, members in results.groups.items():
        kept = [r for r in records if r["contestant"] in (*members, *REFERENCES)]
        for title, of_title in ((group, TRUTH), (f"{group}, VBench's definitions with offline stand-ins", VBENCH)):
            columns = measured(kept, of_title)
            lines += ["", f"## {title}", ""]
            extra = [f"composite - {o}" for o in AGAINST] if of_title is TRUTH else []
            lines += _head(("frames", "contestant", "clips", *(COLUMNS[c].label for c in columns), *extra))
            for record in kept:
                cells = [
                    describe(record["means"][c], COLUMNS[c])
                    if c == "composite"
                    else number(_mean(record, c), COLUMNS[c])
                    for c in columns
                ]
                for other in AGAINST if extra else ():
                    found = record["differences"].get(other)
                    cells.append("" if found is None else describe(found["composite"], COLUMNS["composite"], True))
                lines.append(_row([str(record["frames"]), record["contestant"], str(record["clips"]), *cells]))
    if results.refused:
        lines += ["", "## Not run", "", *(f"- {name}: {reason}" for name, reason in results.refused.items())]
    lines += ["", f"Settings: {json.dumps(dict(results.settings))}", ""]
    lines += [f"Measured: {json.dumps(dict(results.environment))}"]
    return "\n".join(lines) + "\n"


def _mean(record: dict[str, Any], column: str) -> float | None:
    found: Interval = record["means"][column]
    return found[0]
