"""What a model's forward is called with: limits that its configuration states, and example inputs for planning."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .errors import CaptureError, LengthError

__all__ = ["check_limits", "example_inputs", "latent_size"]


def _config(model: nn.Module) -> Mapping[str, Any]:
    config = getattr(model, "config", {})
    return config if isinstance(config, Mapping) else {}


def _patches(model: nn.Module) -> tuple[int, int, int]:
    """Patch size (frames, height, width) in latent units, 1 where the configuration does not say."""
    config = _config(model)
    size = config.get("patch_size", 1)
    if isinstance(size, (list, tuple)) and len(size) == 3:
        return int(size[0]), int(size[1]), int(size[2])
    space = int(size[-1]) if isinstance(size, (list, tuple)) else int(size or 1)
    return int(config.get("patch_size_t") or 1), space, space


def latent_size(arguments: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Frames, height and width of the five-dimensional `hidden_states` among forward's arguments, if there is one."""
    value = arguments.get("hidden_states")
    if isinstance(value, torch.Tensor) and value.ndim == 5:
        return int(value.shape[2]), int(value.shape[3]), int(value.shape[4])
    return None


def check_limits(model: nn.Module, frames: int, height: int, width: int) -> None:
    """Refuse a latent size that the model's own position tables cannot hold.

    Raises:
        LengthError: names the limit, what was asked for, and what to change.
    """
    limit = _config(model).get("rope_max_seq_len")
    if limit is None:
        return
    patches = _patches(model)
    for name, size, patch in zip(("frames", "height", "width"), (frames, height, width), patches, strict=True):
        if size // patch > limit:
            raise LengthError(
                f"{size} latent {name} need {size // patch} positions, the model's rope_max_seq_len is {limit}; "
                f"ask for fewer {name} or load the model with a larger rope_max_seq_len"
            )


def example_inputs(
    model: nn.Module, frames: int, height: int, width: int, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Zeros of the right shape for every required argument of forward, by the conventional argument names.

    Args:
        frames, height, width: latent sizes of the model's input. given: arguments to use as they are.

    Raises:
        CaptureError: a required argument has no conventional meaning; pass it in `given`.
    """
    config, given = _config(model), dict(given or {})
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    dtype = getattr(model, "dtype", torch.float32)
    channels = int(config.get("in_channels", 16))
    makers: dict[str, Any] = {
        "hidden_states": lambda: torch.zeros(1, channels, frames, height, width, device=device, dtype=dtype),
        "timestep": lambda: torch.zeros(1, device=device, dtype=torch.long),
        "encoder_hidden_states": lambda: torch.zeros(
            1, 16, int(config.get("text_dim") or config.get("text_embed_dim") or 16), device=device, dtype=dtype
        ),
    }
    if config.get("image_dim"):
        makers["encoder_hidden_states_image"] = lambda: torch.zeros(
            1, 257, int(config["image_dim"]), device=device, dtype=dtype
        )
        makers["encoder_hidden_states"] = lambda: torch.zeros(
            1, 512, int(config["text_dim"]), device=device, dtype=dtype
        )
    result: dict[str, Any] = {}
    for name, parameter_ in inspect.signature(model.forward).parameters.items():
        if name in given:
            result[name] = given[name]
        elif name in makers:
            result[name] = makers[name]()
        elif name == "return_dict":
            result[name] = False
        elif parameter_.default is inspect.Parameter.empty and parameter_.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        ):
            raise CaptureError(
                f"{type(model).__name__}.forward needs {name!r}, for which no example can be made; "
                f"pass it as plan(..., inputs={{{name!r}: tensor}})"
            )
    return result
