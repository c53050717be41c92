"""Rows of `bench/tables.py`, one a finished video, and how they are averaged and compared within a clip.

A clip is a seed: its prompt and its initial noise. A contestant that has several draws (random layers) counts in each
clip with the mean of its draws, so that every interval is over clips.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freeloc_fx.errors import FreelocError

from .intervals import Interval, interval

__all__ = ["COLUMNS", "COMPANIONS", "SCHEMA", "Column", "Results", "ResultsError", "interval", "with_companions"]


SCHEMA = 1


class ResultsError(FreelocError, ValueError):
    """Results cannot be read, or have not the layout of `bench/tables.py`."""


@dataclass(frozen=True)
class Column:
    """One figure of a video.

    Args:
        label: its heading.
        kind: "truth" (against the prompt), "proxy" (VBench's definition) or "cost".
        best: 1, 0, or None where neither is best.
        digits: after the point.
        unit: "" for a share or a ratio.
        help: a few words for the reader.
    """

    label: str
    kind: str
    best: float | None = 1.0
    digits: int = 2
    unit: str = ""
    help: str = ""


COLUMNS: dict[str, Column] = {
    "composite": Column("composite", "truth", help="what is shown, how it looks, what stays and what goes on"),
    "composite_before": Column("before", "truth", help="geometric mean of identity, sharpness, motion and area"),
    "quality": Column("quality", "truth", help="identity, sharpness and area: what a still frame can show"),
    "constancy": Column("constancy", "truth", help="things keep the colour, size and kind of the first trained length"),
    "permanence": Column("permanence", "truth", help="share of frames in which each thing is there once"),
    "pops": Column("pops", "truth", 0.0, 1, help="things that appear, vanish or double, per 100 frames"),
    "frozen": Column("frozen", "truth", 0.0, help="share of the time in which a thing stands"),
    "motion": Column("motion", "truth", help="closeness of the shapes' speed to the prompt's"),
    "identity": Column("identity", "truth", help="prompted shapes seen in their colour and kind, nothing else beside"),
    "presence": Column("found", "truth", help="prompted shapes seen in their colour"),
    "shape_accuracy": Column("shape", "truth", help="of those seen whole, the right kind"),
    "sharpness": Column("sharpness", "truth", help="slope of outlines beside an ideal one's, a ratio"),
    "area": Column("area", "truth", help="ratio to the prompt's"),
    "speed": Column("speed", "truth", help="ratio to the prompt's"),
    "psnr": Column("psnr", "truth", None, 1, "dB", "beside the ideal shape at the same place"),
    "foreign": Column("foreign", "truth", 0.0, 3, help="share of pixels in shapes that were not asked for"),
    "scroll_error": Column("scroll err.", "truth", 0.0, 2, "px", "background's velocity beside the prompt's, a frame"),
    "loop": Column("loop", "truth", 0.0, help="an exact repeat of the shapes' path is 1"),
    "repeated": Column("repeated", "truth", 0.0, help="share of the time in which the path repeats an earlier time's"),
    "subject_consistency": Column("subject cons.", "proxy", digits=3),
    "background_consistency": Column("backgr. cons.", "proxy", digits=3),
    "motion_smoothness": Column("smoothness", "proxy", digits=3),
    "dynamic_degree": Column("dynamic", "proxy", help="share of videos that move at all"),
    "flow": Column("flow", "proxy", None, help="how much moves; 1 is just dynamic"),
    "freeze": Column("freeze", "proxy", 0.0, help="share of frame pairs without motion"),
    "recurrence": Column("loop (video)", "proxy", 0.0, help="share of frames that recur"),
    "no_repeat": Column("NoRepeat", "proxy", help="share of videos that do not repeat after the intrinsic period"),
    "imaging_quality": Column("imaging", "proxy"),
    "seconds": Column("seconds", "cost", None, 1, "s", "of the processor: denoising and decoding"),
    "memory": Column("memory", "cost", None, 0, "MB", "peak beyond what was resident before"),
}  # fmt: skip


COMPANIONS = ("dynamic_degree", "flow", "freeze", "recurrence")
"""What stands beside every consistency or smoothness: a frozen video is perfectly consistent."""


_FLATTERED = ("subject_consistency", "background_consistency", "motion_smoothness")


def with_companions(columns: Iterable[str]) -> list[str]:
    """Put the companions that are not among the columns right after the last flattering one.

    Args:
        columns: keys of `COLUMNS`.

    Returns:
        The columns in order, without repeats.

    Raises:
        ResultsError: an unknown column.
    """
    chosen = list(dict.fromkeys(columns))
    if unknown := [c for c in chosen if c not in COLUMNS]:
        raise ResultsError(f"columns: expected some of {', '.join(COLUMNS)}, found {', '.join(unknown)}")
    last = max((i for i, c in enumerate(chosen) if c in _FLATTERED), default=None)
    if last is None:
        return chosen
    return [*chosen[: last + 1], *(c for c in COMPANIONS if c not in chosen), *chosen[last + 1 :]]


@dataclass(frozen=True)
class Results:
    """The rows of one model.

    Args:
        model: its name.
        short: video frames of the trained length.
        rows: one for each finished video.
        groups: name of a table -> its contestants in order.
        settings: what all videos share.
        environment: the machine and the versions.
        layerwise: the contestant that has a strategy a layer, None where the profile gives no such choice.
        refused: contestant -> why it cannot run.
        models: contestant -> what it is, in a few words.
        videos: {"contestant", "frames", "seed", "file"} of those kept, files relative to `folder`.
        folder: where the results lie.
    """

    model: str
    short: int
    rows: Sequence[Mapping[str, Any]]
    groups: Mapping[str, Sequence[str]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    layerwise: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    videos: Sequence[Mapping[str, Any]] = ()
    folder: Path = Path()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Results:
        """Read FOLDER/tables.json.

        Args:
            folder: the folder.

        Returns:
            Its results.

        Raises:
            ResultsError: no such file, not JSON, or another layout.
        """
        path = Path(folder) / "tables.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultsError(
                f"{path}: cannot be read ({error.strerror}); expected what bench/tables.py wrote"
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ResultsError(f"{path}: expected JSON, found {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ResultsError(f"{path}: expected results of schema {SCHEMA}, found {found!r}")
        names = ("model", "short", "rows", "groups", "settings", "environment", "layerwise", "refused", "models")
        try:
            made = cls(**{name: data[name] for name in names}, videos=data["videos"], folder=Path(folder))
        except KeyError as error:
            raise ResultsError(f"{path}: expected the layout of bench/tables.py, found no {error}") from error
        try:
            _check_parts(made)
            for number, row in enumerate(made.rows):
                _check(f"rows[{number}]", row, _ROW)
                _check_scores(f"rows[{number}]", row)
            _check_composites(made.rows)
            for number, video in enumerate(made.videos):
                _check(f"videos[{number}]", video, _VIDEO)
        except ValueError as error:
            raise ResultsError(f"{path}: expected the layout of bench/tables.py, found {error}") from error
        return made

    def as_dict(self) -> dict[str, Any]:
        """JSON data that `load` reads back."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "short": self.short,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "groups": {name: list(members) for name, members in self.groups.items()},
            "layerwise": self.layerwise,
            "refused": dict(self.refused),
            "models": dict(self.models),
            "videos": [dict(v) for v in self.videos],
            "rows": [dict(r) for r in self.rows],
        }

    @property
    def lengths(self) -> list[int]:
        """Lengths that have rows, in video frames, the shortest first."""
        return sorted({int(r["frames"]) for r in self.rows})

    def extension(self, frames: int) -> float:
        """Length as a multiple of the trained one; the frame that both begin with left out, so 81 to 321 is 4.

        Args:
            frames: video frames.

        Returns:
            The multiple.
        """
        return (frames - 1) / max(1, self.short - 1)

    def contestants(self, frames: int | None = None) -> list[str]:
        """Name the contestants that have rows, in the order of the groups.

        Args:
            frames: video frames of the rows; None for every length.

        Returns:
            The names.
        """
        known = [*dict.fromkeys(name for members in self.groups.values() for name in members)]
        found = {r["contestant"] for r in self.rows if frames is None or r["frames"] == frames}
        return [n for n in known if n in found] + sorted(found - set(known))

    def per_clip(self, contestant: str, frames: int, column: str) -> dict[int, float]:
        """Look up one column of one contestant.

        Clips where it was not measurable are left out. Times of the first video after a capture are left out where the
        same contestant has others at that length.

        Args:
            contestant: a name.
            frames: video frames.
            column: a key of `COLUMNS`.

        Returns:
            Seed -> value, the mean over draws.
        """
        rows = [r for r in self.rows if r["contestant"] == contestant and r["frames"] == frames]
        rows = [r for r in rows if (v := r["scores"].get(column)) is not None and math.isfinite(v)]
        if column == "seconds" and any(not r["captured"] for r in rows):
            rows = [r for r in rows if not r["captured"]]
        found: dict[int, list[float]] = {}
        for row in rows:
            found.setdefault(int(row["seed"]), []).append(float(row["scores"][column]))
        return {seed: sum(values) / len(values) for seed, values in sorted(found.items())}

    def mean(self, contestant: str, frames: int, column: str) -> Interval:
        """Average one column of one contestant over clips.

        Args:
            contestant: a name.
            frames: video frames.
            column: a key of `COLUMNS`.

        Returns:
            Mean, low and high, see `interval`.
        """
        return interval(self.per_clip(contestant, frames, column).values())

    def differences(
        self, contestant: str, against: str, frames: int, column: str, *, short: bool = False, factor: float = 1.0
    ) -> dict[int, float]:
        """Subtract a factor times the other's value from the contestant's, in clips that have both.

        Args:
            contestant: a name.
            against: the other's name.
            frames: video frames.
            column: a key of `COLUMNS`.
            short: compare with the other at the trained length.
            factor: on the other's value.

        Returns:
            Seed -> difference.
        """
        mine = self.per_clip(contestant, frames, column)
        other = self.per_clip(against, self.short if short else frames, column)
        return {seed: mine[seed] - factor * other[seed] for seed in mine if seed in other}

    def clips(self, contestant: str, frames: int) -> int:
        """Count the clips of one contestant.

        Args:
            contestant: a name.
            frames: video frames.

        Returns:
            The number of seeds.
        """
        return len({r["seed"] for r in self.rows if r["contestant"] == contestant and r["frames"] == frames})


_ROW = {"contestant": str, "frames": int, "seed": int, "captured": bool, "scores": dict}
_VIDEO = {"contestant": str, "frames": int, "seed": int, "file": str}


def _check(place: str, value: Any, kinds: Mapping[str, type]) -> None:
    """Refuse what lacks one of these keys, or holds something of another kind there.

    Raises:
        ValueError: names the place.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {value!r} in place of an object")
    for name, kind in kinds.items():
        if name not in value:
            raise ValueError(f"{place} without {name!r}")
        if not isinstance(value[name], kind):
            raise ValueError(f"{place}.{name}: {value[name]!r} in place of {kind.__name__}")


def _check_parts(results: Results) -> None:
    """Refuse results whose parts are of another kind.

    Raises:
        ValueError: names the part.
    """
    parts = vars(results)
    kinds: dict[str, type] = {"model": str, "short": int, "rows": list, "videos": list}
    kinds |= dict.fromkeys(("groups", "settings", "environment", "refused", "models"), dict)
    _check("results", parts, kinds)
    for name, members in results.groups.items():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise ValueError(f"groups.{name}: {members!r} in place of a list of names")
    _check("settings", {"prompts": results.settings.get("prompts", {})}, {"prompts": dict})


def _check_composites(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows whose composites are not of one kind: they cannot stand in one table. Rows without "composite_before"
    have that one under the name "composite"; those without "repeated" took all of a loop off.

    Raises:
        ValueError: names two rows.
    """
    for name in ("composite_before", "repeated"):
        kinds: dict[bool, int] = {}
        for number, row in enumerate(rows):
            if "composite" in row["scores"]:
                kinds.setdefault(name in row["scores"], number)
        if len(kinds) > 1:
            raise ValueError(
                f"rows[{kinds[False]}] without and rows[{kinds[True]}] with scores.{name}: their composites are of two "
                "kinds; make the older rows again"
            )


def _check_scores(place: str, row: Mapping[str, Any]) -> None:
    """Refuse scores that are no numbers, or of no known column; those that are not there were not measured.

    Raises:
        ValueError: names the place.
    """
    for name, value in row["scores"].items():
        if name not in COLUMNS or not (value is None or isinstance(value, (int, float))):
            raise ValueError(f"{place}.scores.{name}: {value!r} in place of a number or null of a known column")
    curve = row.get("curve")
    if curve is not None:
        _check(f"{place}.curve", curve, {"at": list})
        for name, values in curve.items():
            if not isinstance(values, list) or not all(v is None or isinstance(v, (int, float)) for v in values):
                raise ValueError(f"{place}.curve.{name}: {values!r} in place of a list of numbers or null")
