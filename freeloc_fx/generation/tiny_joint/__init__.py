"""tiny-joint, the embedded model with joint attention: video and text tokens in one softmax, as in HunyuanVideo.

A transformer of HunyuanVideo's kind with its own text encoder, trained on the clips and VAE latents of tiny-wan, whose
VAE it uses. Load it with `freeloc_fx.generation.pipelines.load_pipeline("tiny-joint")` or
`freeloc_fx.generation.tiny_joint.pipeline.TinyJointPipeline.from_pretrained(path())`.
"""

from __future__ import annotations

from pathlib import Path

from freeloc_fx.generation.weights import embedded_folder

__all__ = ["path"]


def path() -> Path:
    """Find the folder that `TinyJointPipeline.from_pretrained` loads.

    Returns:
        The folder.

    Raises:
        ModelError: the weights are not there (a source checkout without them, or a package inside an archive).
    """
    return embedded_folder(__name__, ("model_index.json", "transformer/config.json", "text_encoder/config.json"))
