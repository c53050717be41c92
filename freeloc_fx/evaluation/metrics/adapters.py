"""The `vbench` package: run it on videos, or read the results of a run, and put its figures beside ours.

vbench 0.1.5 pins old releases (numpy below 2, transformers 4.33) that cannot live beside this library's own
dependencies. So it is no extra: run `vbench evaluate --mode=custom_input` in an environment of its own and read its
result with `read_vbench`; `run_vbench` serves environments in which both can be imported.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .clip import MetricError, require
from .evaluation import Evaluation

__all__ = ["DIMENSIONS", "read_vbench", "run_vbench", "vbench_of", "with_vbench"]


DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""VBench's dimensions that take any video."""


_HUNDRED = ("imaging_quality",)  # one video's figure is 0..100, unlike the mean over videos beside it


_RUN = "freeloc"


Results = Mapping[str, Mapping[str, float]]


def read_vbench(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read a `NAME_eval_results.json`: {dimension: [mean, [{"video_path": ..., "video_results": ...}, ...]]}.

    Args:
        path: the file.

    Returns:
        path of a video as it stands in the file -> dimension -> figure in 0..1 (dynamic degree 0 or 1).

    Raises:
        MetricError: no such file, not JSON, or another layout.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MetricError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MetricError(f"{path}: expected vbench's JSON results, found {error}") from error
    found: dict[str, dict[str, float]] = {}
    try:
        for dimension, (_, videos) in data.items():
            for video in videos:
                value = float(video["video_results"]) / (100 if dimension in _HUNDRED else 1)
                found.setdefault(str(video["video_path"]), {})[str(dimension)] = value
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        layout = "{dimension: [mean, [{video_path, video_results}, ...]]}"
        raise MetricError(
            f"{path}: expected vbench's layout {layout}, found {type(error).__name__}: {error}"
        ) from error
    return found


def run_vbench(
    videos: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    dimensions: Sequence[str] = DIMENSIONS,
    device: Any = "cuda",
) -> dict[str, dict[str, float]]:
    """Run the vbench package on videos (its "custom_input" mode) and read its result.

    Args:
        videos: .mp4 files; vbench reads no others in all dimensions.
        output: folder for `freeloc_eval_results.json` and vbench's own files.
        dimensions: some of `DIMENSIONS`.
        device: torch device; vbench needs CUDA.

    Returns:
        As `read_vbench`, with the paths that were given.

    Raises:
        MetricError: no videos, one that is missing or no .mp4, an unknown dimension, or no figures for a video.
        DependencyError: vbench is not installed.
    """
    paths = [Path(v) for v in videos]
    if not paths:
        raise MetricError("vbench: expected at least one video, found none")
    for path in paths:
        if not path.is_file() or path.suffix.lower() != ".mp4":
            raise MetricError(
                f"{path}: vbench expects a .mp4 file, found {'no file' if not path.is_file() else 'another'}"
            )
    if unknown := [d for d in dimensions if d not in DIMENSIONS]:
        raise MetricError(f"vbench: expected dimensions among {', '.join(DIMENSIONS)}, found {', '.join(unknown)}")
    package = require("vbench", "vbench (in an environment of its own)", "VBench")
    output = Path(output)
    with tempfile.TemporaryDirectory() as folder:
        # vbench takes a folder and reads prompts from file names, so equal names in different folders must differ.
        names = {str(Path(folder) / f"{i:04d}.mp4"): str(path) for i, path in enumerate(paths)}
        for name, path in zip(names, paths, strict=True):
            shutil.copyfile(path, name)
        package.VBench(device, "", str(output)).evaluate(
            videos_path=folder, name=_RUN, dimension_list=list(dimensions), mode="custom_input"
        )
    found = {names[name]: values for name, values in read_vbench(output / f"{_RUN}_eval_results.json").items()}
    for path in paths:
        if missing := sorted(set(dimensions) - set(found.get(str(path), {}))):
            raise MetricError(f"{path}: vbench gave no figure for {', '.join(missing)}")
    return found


def with_vbench(evaluation: Evaluation, results: Results) -> Evaluation:
    """Add vbench's figures of the same video to an evaluation; ours stay, so that dynamics and loop stay beside them.

    A video is found by its path, else by its file name if only one video has it.

    Args:
        evaluation: of one video.
        results: as `read_vbench` gives them.

    Returns:
        The evaluation with `vbench` filled.

    Raises:
        MetricError: the results hold no such video, or several of that name.
    """
    return replace(evaluation, vbench=vbench_of(evaluation.name, results))


def vbench_of(name: str, results: Results) -> dict[str, float]:
    """Find vbench's figures of a video.

    Args:
        name: its path.
        results: as `read_vbench` gives them.

    Returns:
        The figures.

    Raises:
        MetricError: as `with_vbench`.
    """
    wanted = Path(name)
    matches = [v for p, v in results.items() if Path(p).resolve() == wanted.resolve()]
    if not matches:
        matches = [v for p, v in results.items() if Path(p).name == wanted.name]
    if len(matches) != 1:
        number = "none" if not matches else f"{len(matches)}"
        raise MetricError(f"{name}: expected one video of that name in vbench's results, found {number}")
    return dict(matches[0])
