"""Load a pipeline by the name of an embedded model, from a folder, or from a hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from freeloc_fx.errors import ModelError

from .components import transformers_of
from .embedded import TINY_WAN, loader_of
from .request import resolve_model

__all__ = ["load_pipeline"]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars from the libraries that load weights; the caller has its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [
        log
        for log in (diffusers_logging, transformers_logging)
        if getattr(log, "is_progress_bar_enabled", lambda: True)()
    ]
    for log in loggers:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in loggers:
            log.enable_progress_bar()


def load_pipeline(
    model: str | os.PathLike[str] = TINY_WAN,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    transformer_only: bool = False,
    **options: Any,
) -> Any:
    """Load a diffusers pipeline onto a device, with its own progress bar off.

    Args:
        model: "tiny-wan" or "tiny-joint" (embedded), the folder of a diffusers pipeline, or a hub id.
        dtype: of the weights. The VAE stays in float32, since its bfloat16 shows in the picture.
        device: where the pipeline runs.
        transformer_only: leave text encoders and the VAE out, which is enough for a plan.
        **options: passed to `DiffusionPipeline.from_pretrained`, for example `local_files_only`.

    Returns:
        The pipeline.

    Raises:
        ModelError: there is no such model, the folder is not a pipeline, or the pipeline has no transformer.
    """
    source = resolve_model(model)
    from diffusers import __version__ as diffusers_version

    if transformer_only:
        options = {"vae": None, "tokenizer": None, "text_encoder": None, **options}
    dtypes = dtype if transformer_only or dtype == torch.float32 else {"default": dtype, "vae": torch.float32}
    recent = tuple(int(n) for n in diffusers_version.split(".")[:2]) >= (0, 42)  # it renamed the argument
    options["dtype" if recent else "torch_dtype"] = dtypes
    try:
        with _quiet():
            pipe = loader_of(source).from_pretrained(source, **options)
    except ModelError:
        raise
    except (OSError, ValueError, AttributeError) as error:  # the last where diffusers has no class of the folder's name
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {os.fspath(model)!r} cannot be loaded: {why}") from error
    if not transformers_of(pipe):
        raise ModelError(f"model {os.fspath(model)!r} is a {type(pipe).__name__}, which has no transformer")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
