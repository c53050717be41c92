"""Finished videos of an unfinished comparison, kept beside its output so that a second run need not make them again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freeloc_fx.files import DamagedFileError, installed_version, read_json, replacing
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.encoding import VideoError

from .common import Job, write_json
from .latents import SUFFIX

__all__ = ["FinishedVideo", "FinishedVideos"]


_PART = re.compile(r"\.?(?P<key>[\w.+-]+-\d+-[0-9a-f]{16})(-\w+)?\.(json|npy|latents\.safetensors)")
"""Names of parts: those of `FinishedVideos.key`, and what a killed process left half written."""


_KEPT = "kept.json"


@dataclass(frozen=True)
class FinishedVideo:
    """One finished video.

    Args:
        frames: uint8 (video frames, height, width, 3), mapped from the file.
        facts: what is known of it beside its pixels, JSON data.
    """

    frames: np.ndarray
    facts: dict[str, Any]


class FinishedVideos:
    """A folder of finished videos, each under a hash of everything that its pixels depend on.

    Args:
        folder: where they lie; it is made with the first video.
        job: the checked request that they share.
        prompt: what they show, or from which frame on they show what.
        timing: `blend` and `fps` of a prompt that changes over time.

    Raises:
        DamagedFileError: the folder's list of videos to keep cannot be read.
    """

    def __init__(
        self, folder: Path, job: Job, prompt: str | Mapping[int, str], timing: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.job, self.prompt, self.timing = folder, job, prompt, timing
        self._model = _weights(job.model)
        self._used: set[str] = set()
        self._kept()  # a damaged list is found before the work

    def key(self, strategy: str, seed: int) -> str:
        """Name a video's files after everything that its pixels depend on.

        Args:
            strategy: a strategy's name, or "profile".
            seed: of the initial noise.

        Returns:
            The name without a suffix.
        """
        job = self.job
        content = {
            "version": installed_version(),
            "prompt": self.prompt,
            **(self.timing or {}),
            "strategy": strategy,
            "seed": seed,
            "model": self._model,
            "profile": None if strategy == "direct" else repr(job.profile),
            "size": [job.frames, job.height, job.width],
            "sampling": [job.steps, job.guidance, job.negative_prompt],
            "run": [str(job.dtype), job.device, job.backend, job.attention],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return f"{strategy}-{seed}-{digest}"

    def get(self, strategy: str, seed: int) -> FinishedVideo | None:
        """Find a finished video. The facts are written last: where they are, the frames are whole.

        Args:
            strategy: as of `key`.
            seed: as of `key`.

        Returns:
            The video; None where it is missing or damaged.
        """
        key = self.key(strategy, seed)
        facts = self.folder / f"{key}.json"
        if not facts.is_file():
            return None
        frames = self._frames(self.folder / f"{key}.npy")
        try:
            known = read_json(facts)
        except (OSError, DamagedFileError):
            return None  # made again, and replaced
        if frames is None or not isinstance(known, dict):
            return None
        self._used.add(key)
        return FinishedVideo(frames, known)

    def _frames(self, path: Path) -> np.ndarray | None:
        """A video's frames; None where they are not whole."""
        try:
            frames: np.ndarray = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return frames if frames.shape == self._shape and frames.dtype == np.uint8 else None

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """Of each video's frames."""
        return self.job.frames, self.job.height, self.job.width, 3

    def put(self, strategy: str, seed: int, video: library.Video, facts: dict[str, Any]) -> FinishedVideo:
        """Keep a finished video.

        Args:
            strategy: as of `key`.
            seed: as of `key`.
            video: its frames as floats in [0, 1] (video frames, height, width, 3).
            facts: what to keep beside its pixels, JSON data.

        Returns:
            The video as it is read back.

        Raises:
            VideoError: it has other frames than were asked for.
            WriteError: it could not be written whole.
            OSError: the folder cannot be written to.
        """
        key = self.key(strategy, seed)
        self.folder.mkdir(exist_ok=True)
        frames = (np.clip(video.frames, 0, 1) * 255).round().astype(np.uint8)
        if frames.shape != self._shape:
            raise VideoError(f"{strategy}, seed {seed}: expected a video of {self._shape}, found {frames.shape}")
        with replacing(self.folder / f"{key}.npy") as temporary:
            np.save(temporary, frames)
            if self._frames(temporary) is None:  # numpy passes over what fails when it closes the file
                raise OSError("the frames cannot be read back")
        write_json(self.folder / f"{key}.json", facts)
        kept = self.get(strategy, seed)
        assert kept is not None
        return kept

    def latents(self, strategy: str, seed: int) -> Path:
        """Say where the denoised latents of a video are kept until it is finished.

        Args:
            strategy: as of `key`.
            seed: as of `key`.

        Returns:
            The file; its folder is there.

        Raises:
            OSError: the folder cannot be made.
        """
        self.folder.mkdir(exist_ok=True)
        return self.folder / f"{self.key(strategy, seed)}{SUFFIX}"

    def keep(self) -> None:
        """Keep what this comparison used, whatever other settings the folder is used for later.

        Raises:
            WriteError: the list of what is kept could not be written whole.
            OSError: the folder cannot be written to.
        """
        write_json(self.folder / _KEPT, sorted(self._kept() | self._used))

    def remove(self) -> int:
        """Delete what this comparison used, and what an interrupted one of other settings left: nobody looks for it.

        Denoised latents of other settings stay: the run that left them said that a video can be made of them. The
        folder goes if nothing is left in it.

        Returns:
            How many videos of other settings there were.
        """
        kept = self._kept() - self._used
        undecoded = self.undecoded()
        parts = [file for file in self.folder.glob("*") if (m := _PART.fullmatch(file.name)) and m["key"] not in kept]
        parts = [file for file in parts if file not in undecoded]
        others = {file.stem for file in parts if file.suffix == ".npy"} - self._used
        for file in parts:
            file.unlink(missing_ok=True)
        if not kept:
            (self.folder / _KEPT).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
        return len(others)

    def undecoded(self) -> list[Path]:
        """Find the denoised latents of other settings, which a run that failed left.

        Returns:
            Their files.
        """
        found = [(file, _PART.fullmatch(file.name)) for file in self.folder.glob(f"*{SUFFIX}")]
        return sorted(f for f, m in found if m and f.name == m["key"] + SUFFIX and m["key"] not in self._used)

    def _kept(self) -> set[str]:
        """Videos that somebody wanted kept.

        Raises:
            DamagedFileError: the list of them is none.
        """
        path = self.folder / _KEPT
        kept = read_json(path) if path.is_file() else []
        if not isinstance(kept, list) or not all(isinstance(key, str) for key in kept):
            raise DamagedFileError(
                f"{path}: expected a list of the videos to keep, found {kept!r:.60}; delete it to keep none"
            )
        return set(kept)


def _weights(model: str) -> list[Any]:
    """The model's place with size and time of its weight files, so that retrained weights do not reuse old videos."""
    source = Path(library.resolve_model(model))
    files = sorted(source.rglob("*")) if source.is_dir() else []
    stats = [(file.relative_to(source).as_posix(), file.stat()) for file in files if file.is_file()]
    return [str(source.resolve()) if source.is_dir() else model, [[n, s.st_size, s.st_mtime_ns] for n, s in stats]]
