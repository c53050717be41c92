"""Claims about long video, each decided by paired differences within clips; nothing but the claim itself is written.

The claims marked "paper" are those of FreeLOC (CVPR 2026, arXiv 2603.25209), its main table, ablation and figures; the
others are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .rows import Interval, Results, interval

__all__ = ["CLAIMS", "FEWEST", "MARGIN", "PEERS", "Claim", "Comparison", "Verdict", "judge", "judge_claims"]


MARGIN = 0.02
"""A difference between two scores (0..1) that is smaller than this does not matter."""


FEWEST = 5
"""Clips below which nothing is decided: four differences have one sign by chance in one case of eight, five in one of
sixteen."""


Sense = Literal["above", "below", "not below", "not above"]


Word = Literal["holds", "does not hold", "undecided", "not measured"]


PEERS = (
    "window", "window-no-sink", "riflex", "freelong", "freenoise", "freelong++", "longdiff", "ultravico", "anchors",
    "pi", "ntk", "yarn", "clip", "group", "context-windows",
)  # fmt: skip
"""Contestants that other people published."""


@dataclass(frozen=True)
class Comparison:
    """A contestant against another in one column.

    Args:
        column: a key of `COLUMNS`.
        contestant: a name; "layerwise" stands for the results' own layer-wise contestant.
        against: the other's name, "layerwise" likewise.
        sense: what is claimed of the difference.
        short: whether the other's clip is that of the trained length.
        factor: on the other's value.
    """

    column: str
    contestant: str
    against: str
    sense: Sense
    short: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class Claim:
    """A claim about long video.

    Args:
        key: its name in results.
        source: whose claim it is.
        text: the claim in words.
        comparisons: all of them must hold.
        extension: the lengths it is about, from and to, in multiples of the trained one.
    """

    key: str
    source: Literal["paper", "ours"]
    text: str
    comparisons: tuple[Comparison, ...]
    extension: tuple[float, float] = (1.5, 1e9)


def _peers(sense: Sense, contestant: str) -> tuple[Comparison, ...]:
    return tuple(Comparison("composite", contestant, peer, sense) for peer in PEERS)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "degrades",
        "paper",
        "Direct sampling beyond the trained length loses quality and motion.",
        (
            Comparison("composite", "direct", "direct", "below", short=True),
            Comparison("motion", "direct", "direct", "below", short=True),
        ),
    ),
    Claim("vrpr", "paper", "VRPR restores motion in part.", (Comparison("motion", "vrpr", "direct", "above"),)),
    Claim(
        "tsa",
        "paper",
        "TSA restores quality and motion.",
        (Comparison("quality", "tsa", "direct", "above"), Comparison("motion", "tsa", "direct", "above")),
    ),
    Claim(
        "both",
        "paper",
        "VRPR and TSA together beat each alone.",
        (
            Comparison("composite", "vrpr+tsa", "vrpr", "above"),
            Comparison("composite", "vrpr+tsa", "tsa", "above"),
        ),
    ),
    Claim(
        "layerwise",
        "paper",
        "Layer-wise assignment beats uniform and random assignment.",
        (
            Comparison("composite", "layerwise", "vrpr+tsa", "above"),
            Comparison("composite", "layerwise", "random", "above"),
        ),
    ),
    Claim(
        "positions",
        "paper",
        "VRPR beats clipping and grouping positions.",
        (Comparison("composite", "vrpr", "clip", "above"), Comparison("composite", "vrpr", "group", "above")),
    ),
    Claim(
        "riflex",
        "paper",
        "RIFLEx does not help at four times the trained length.",
        (Comparison("composite", "riflex", "direct", "not above"),),
        (3.5, 4.5),
    ),
    Claim(
        "frozen",
        "paper",
        "The consistency of direct sampling is high because it freezes.",
        (
            Comparison("subject_consistency", "direct", "profile", "above"),
            Comparison("motion", "direct", "profile", "below"),
            Comparison("flow", "direct", "profile", "below"),
        ),
    ),
    Claim(
        "trade",
        "paper",
        "A sliding window restores motion and loses constancy; FreeLOC restores motion and keeps constancy.",
        (
            Comparison("motion", "window", "direct", "above"),
            Comparison("constancy", "window", "direct", "below"),
            Comparison("motion", "profile", "direct", "above"),
            Comparison("constancy", "profile", "window", "above"),
        ),
    ),
    Claim("peers", "paper", "FreeLOC is at least as good as each of its peers.", _peers("not below", "profile")),
    Claim(
        "target",
        "ours",
        "At ten times the trained length the profile keeps sharpness, identity and motion within 5% of short clips.",
        tuple(
            Comparison(column, "profile", "direct", "not below", short=True, factor=0.95)
            for column in ("sharpness", "identity", "motion")
        ),
        (9.0, 11.0),
    ),
    Claim(
        "temperature",
        "ours",
        "Score temperature improves direct sampling and VRPR.",
        (
            Comparison("composite", "direct+temp", "direct", "above"),
            Comparison("composite", "vrpr+temp", "vrpr", "above"),
        ),
    ),
    Claim(
        "squeeze",
        "ours",
        "In a joint model text had better meet video at places squeezed into the trained length.",
        (
            Comparison("composite", "squeeze", "direct", "above"),
            Comparison("composite", "vrpr+squeeze", "vrpr", "above"),
        ),
    ),
    Claim(
        "separable",
        "ours",
        "Exact pair quantisation is at least as good as separable quantisation.",
        (Comparison("composite", "vrpr", "vrpr-separable", "not below"),),
    ),
)


@dataclass(frozen=True)
class Finding:
    """One comparison decided.

    Args:
        comparison: what was compared.
        difference: mean over clips with its interval.
        values: means of the two sides, the other's without the factor.
        clips: clips that have both videos.
        verdict: what the difference says.
    """

    comparison: Comparison
    difference: Interval
    values: tuple[float | None, float | None]
    clips: int
    verdict: Word


@dataclass(frozen=True)
class Verdict:
    """A claim decided.

    Args:
        claim: the claim.
        overall: the verdict over all lengths; each clip counts with its mean over lengths.
        findings: those that `overall` rests on.
        lengths: video frames -> (verdict, findings).
    """

    claim: Claim
    overall: Word
    findings: tuple[Finding, ...]
    lengths: dict[int, tuple[Word, tuple[Finding, ...]]]

    @property
    def exceptions(self) -> tuple[Finding, ...]:
        """Findings of `overall` that do not hold."""
        return tuple(f for f in self.findings if f.verdict == "does not hold")

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "key": self.claim.key,
            "source": self.claim.source,
            "claim": self.claim.text,
            "verdict": self.overall,
            "findings": [asdict(f) for f in self.findings],
            "lengths": {
                str(frames): {"verdict": word, "findings": [asdict(f) for f in found]}
                for frames, (word, found) in self.lengths.items()
            },
        }


def judge(difference: Interval, clips: int, sense: Sense) -> Word:
    """What an interval of a mean difference says.

    "above" holds where all of it is above 0, and does not hold where all of it is below `MARGIN`; "not below" holds
    where all of it is above -MARGIN, and does not hold where all of it is below that; "below" and "not above" mirror
    them. With fewer than `FEWEST` clips, or where the interval says neither: undecided.

    Args:
        difference: mean, low and high; None where there is none.
        clips: clips that it is the mean of.
        sense: what is claimed of it.

    Returns:
        The verdict.
    """
    mean, low, high = difference
    if mean is None:
        return "not measured"
    if low is None or high is None or clips < FEWEST:
        return "undecided"
    if sense in ("below", "not above"):
        low, high = -high, -low
    if sense in ("above", "below"):
        return "holds" if low > 0 else "does not hold" if high < MARGIN else "undecided"
    return "holds" if low > -MARGIN else "does not hold" if high < -MARGIN else "undecided"


def combine(words: Sequence[Word]) -> Word:
    """Decide a claim of several comparisons: one that fails decides; what was not measured leaves it undecided.

    Args:
        words: their verdicts.

    Returns:
        The claim's verdict.
    """
    if not words or all(w == "not measured" for w in words):
        return "not measured"
    if "does not hold" in words:
        return "does not hold"
    return "holds" if all(w == "holds" for w in words) else "undecided"


def judge_claims(results: Results, claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """Decide every claim on one model's results, at each length and over all of them.

    Args:
        results: of one model.
        claims: those to decide.

    Returns:
        A verdict for each claim, in order.
    """
    return [_judge(results, claim) for claim in claims]


def _judge(results: Results, claim: Claim) -> Verdict:
    first, last = claim.extension
    lengths = [n for n in results.lengths if first <= results.extension(n) <= last]
    present = set(results.contestants())
    # A claim about "each peer" is about those that can run on this model and were run.
    comparisons = [c for c in claim.comparisons if claim.key != "peers" or c.against in present]
    pooled: list[list[dict[int, float]]] = [[] for _ in comparisons]
    by_length: dict[int, tuple[Word, tuple[Finding, ...]]] = {}
    for frames in lengths:
        found = []
        for comparison, pool in zip(comparisons, pooled, strict=True):
            differences = _differences(results, comparison, frames)
            pool.append(differences)
            found.append(_finding(results, comparison, [frames], [differences]))
        by_length[frames] = (combine([f.verdict for f in found]), tuple(found))
    overall = tuple(_finding(results, c, lengths, pool) for c, pool in zip(comparisons, pooled, strict=True))
    return Verdict(claim, combine([f.verdict for f in overall]), overall, by_length)


def _name(results: Results, name: str) -> str | None:
    return results.layerwise if name == "layerwise" else name


def _differences(results: Results, comparison: Comparison, frames: int) -> dict[int, float]:
    mine, other = (_name(results, n) for n in (comparison.contestant, comparison.against))
    if mine is None or other is None:
        return {}
    return results.differences(mine, other, frames, comparison.column, short=comparison.short, factor=comparison.factor)


def _finding(
    results: Results, comparison: Comparison, lengths: Sequence[int], found: Sequence[dict[int, float]]
) -> Finding:
    """Each clip counts once, with the mean of its differences over the lengths at which it has both videos."""
    seeds = sorted({seed for differences in found for seed in differences})
    values = [[d[seed] for d in found if seed in d] for seed in seeds]
    difference = interval(sum(v) / len(v) for v in values)
    sides = []
    for name, short in ((comparison.contestant, False), (comparison.against, comparison.short)):
        known = _name(results, name)
        # Means over the same videos as the differences.
        side = [
            results.per_clip(known, results.short if short else frames, comparison.column)[seed]
            for frames, differences in zip(lengths, found, strict=True)
            for seed in differences
            if known is not None
        ]
        sides.append(sum(side) / len(side) if side else None)
    word = judge(difference, len(seeds), comparison.sense)
    return Finding(comparison, difference, (sides[0], sides[1]), len(seeds), word)
