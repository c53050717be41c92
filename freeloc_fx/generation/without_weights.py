"""A model from its configuration alone: the real class and position tables, and weights that take no memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from freeloc_fx.compiler.capture.swapped import swapped
from freeloc_fx.errors import CaptureError

__all__ = ["without_weights"]


def without_weights(source: str | Path | Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Make a diffusers model whose parameters are all one zero, seen in the right shape; enough to plan with.

    Args:
        source: a configuration with "_class_name", the JSON file of one, or a class name for its default configuration.
        dtype: of the parameters.

    Returns:
        The model, in evaluation mode.

    Raises:
        CaptureError: there is no such file or class.
    """
    import diffusers

    if isinstance(source, Mapping):
        config = dict(source)
    elif str(source).endswith(".json"):
        try:
            config = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CaptureError(f"{source}: expected a model's config.json, {error}") from error
    else:
        config = {"_class_name": str(source)}
    name = config.get("_class_name") if isinstance(config, dict) else None
    cls: Any = getattr(diffusers, str(name), None)
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise CaptureError(f"{source}: expected the configuration of a diffusers model, found _class_name {name!r}")
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(self, key, parameter)

    made: Any = cls
    with swapped(nn.Module, "register_parameter", on_meta):
        model: nn.Module = made.from_config(config) if len(config) > 1 else made()
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                blank = torch.zeros((), dtype=dtype).expand(parameter.shape)
                module._parameters[key] = nn.Parameter(blank, requires_grad=False)
    return model.eval()
