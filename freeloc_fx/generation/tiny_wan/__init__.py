"""tiny-wan, the embedded model: a complete WanPipeline folder, small enough for two CPU cores.

Trained on clips of 81 frames of 64x64 pixels, 21 latent frames, whose prompts follow the grammar of `scenes`.
"""

from __future__ import annotations

from pathlib import Path

from freeloc_fx.errors import ModelError
from freeloc_fx.generation.weights import embedded_folder

__all__ = ["ModelError", "path"]


def path() -> Path:
    """Find the folder that `WanPipeline.from_pretrained` loads.

    Returns:
        The folder.

    Raises:
        ModelError: the weights are not there (a source checkout without them, or a package inside an archive).
    """
    return embedded_folder(__name__, ("model_index.json", "transformer/config.json", "vae/config.json"))
