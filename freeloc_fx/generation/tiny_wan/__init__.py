"""tiny-wan, the embedded model: a complete WanPipeline folder, small enough for two CPU cores.

Trained on clips of 81 frames of 64x64 pixels, 21 latent frames, whose prompts follow the grammar of `scenes`.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from freeloc_fx.errors import ModelError

__all__ = ["ModelError", "path"]


def path() -> Path:
    """Find the folder that `WanPipeline.from_pretrained` loads.

    Returns:
        The folder.

    Raises:
        ModelError: the weights are not there (a source checkout without them, or a package inside an archive).
    """
    folder = Path(str(importlib.resources.files(__name__) / "model"))
    for needed in ("model_index.json", "transformer/config.json", "vae/config.json"):
        if not (folder / needed).is_file():
            raise ModelError(
                f"tiny-wan: {folder / needed} is missing; install freeloc_fx with its package data, "
                "or make the folder with bench/train_tiny_wan.py"
            )
    return folder
