"""Finished videos of an unfinished comparison, kept beside its output so that a second run need not make them again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freeloc_fx.errors import FreelocError
from freeloc_fx.files import installed_version, replacing
from freeloc_fx.generation import pipelines as library

from .common import Job, write_json

__all__ = ["FinishedVideo", "FinishedVideos"]


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
        prompt: what they show.
    """

    def __init__(self, folder: Path, job: Job, prompt: str) -> None:
        self.folder, self.job, self.prompt = folder, job, prompt
        self._model = _weights(job.model)
        self._used: set[str] = set()

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
        try:
            video = FinishedVideo(
                np.load(self.folder / f"{key}.npy", mmap_mode="r"), json.loads(facts.read_text("utf-8"))
            )
        except (OSError, ValueError):
            return None  # made again, and replaced
        expected = (self.job.frames, self.job.height, self.job.width, 3)
        if video.frames.shape != expected or video.frames.dtype != np.uint8:
            return None
        self._used.add(key)
        return video

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
            FreelocError: it cannot be read back.
            OSError: the folder cannot be written to.
        """
        key = self.key(strategy, seed)
        self.folder.mkdir(exist_ok=True)
        frames = (np.clip(video.frames, 0, 1) * 255).round().astype(np.uint8)
        with replacing(self.folder / f"{key}.npy") as temporary:
            np.save(temporary, frames)
        write_json(self.folder / f"{key}.json", facts)
        kept = self.get(strategy, seed)
        if kept is None:
            raise FreelocError(f"{self.folder / key}.npy was written but cannot be read back; is the disk full?")
        return kept

    def remove(self) -> None:
        """Delete what this comparison used, and the folder if nothing else is in it."""
        for key in self._used:
            for suffix in (".json", ".npy"):
                (self.folder / f"{key}{suffix}").unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _weights(model: str) -> list[Any]:
    """The model's place with size and time of its weight files, so that retrained weights do not reuse old videos."""
    source = Path(library.resolve_model(model))
    files = sorted(source.rglob("*")) if source.is_dir() else []
    stats = [(file.relative_to(source).as_posix(), file.stat()) for file in files if file.is_file()]
    return [str(source.resolve()) if source.is_dir() else model, [[n, s.st_size, s.st_mtime_ns] for n, s in stats]]
