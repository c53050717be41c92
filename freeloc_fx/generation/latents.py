"""What denoising left, kept in a file until its video is safe: hours of work that a failure to decode must not cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from freeloc_fx.errors import FreelocError
from freeloc_fx.files import write_bytes
from freeloc_fx.planning.plan import Plan

__all__ = ["Latents", "LatentsError"]

_KEY = "freeloc_latents"


class LatentsError(FreelocError, ValueError):
    """A file holds no denoised latents, or those of another pipeline."""


@dataclass(frozen=True)
class Latents:
    """Denoised latents, enough for `decode_latents` to make the video of them.

    Args:
        tensor: as the pipeline's own loop leaves them, in its own layout and dtype, on the CPU.
        pipeline: class name of the pipeline that made them.
        settings: the request, JSON data; "frames", "height" and "width" of the video among them.
        seconds: wall time of denoising.
        facts: what else to keep beside them, JSON data.
        plan: what became of the attention; not kept in files.
    """

    tensor: torch.Tensor
    pipeline: str
    settings: Mapping[str, Any]
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write them as a safetensors file, whole or not at all.

        Args:
            path: the file to make or to replace.

        Returns:
            The path.

        Raises:
            WriteError: the disk is full.
            OSError: the folder is not there or cannot be written to.
        """
        from safetensors.torch import save

        names = ("pipeline", "settings", "seconds", "facts")
        known = json.dumps({name: getattr(self, name) for name in names}, allow_nan=False)
        write_bytes(Path(path), save({"latents": self.tensor.contiguous()}, {_KEY: known}))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Latents:
        """Read what `save` wrote.

        Args:
            path: the file.

        Returns:
            The latents, on the CPU.

        Raises:
            LatentsError: no such file, a damaged one, or one that `save` did not write.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            found = "a folder" if Path(path).is_dir() else "no such file"
            raise LatentsError(f"{os.fspath(path)}: expected a file of denoised latents, found {found}")
        try:
            with safe_open(path, "pt") as file:
                known = json.loads((file.metadata() or {})[_KEY])
                return cls(tensor=file.get_tensor("latents"), **known)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise LatentsError(
                f"{os.fspath(path)}: expected denoised latents that freeloc_fx wrote, found a file without them or a "
                f"damaged one ({type(error).__name__}: {error})"
            ) from error
