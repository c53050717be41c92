"""Which components of a pipeline are video transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from freeloc_fx.errors import TransformError

__all__ = ["TRANSFORMERS", "check_pipeline", "first_transformer", "transformers_of"]

TRANSFORMERS = ("transformer", "transformer_2", "transformer_ref")
"""Their names in diffusers, in the order in which a generation runs them. Wan 2.2 has the first two, its 5B model the
first; MiniMax-H3 runs the last in place of the first where a request has references."""


def transformers_of(pipe: Any) -> dict[str, Any]:
    """Find the transformers that a pipeline holds.

    Args:
        pipe: a diffusers pipeline, or any object with these components as attributes.

    Returns:
        Component name -> model, in the order in which they run; empty where there is none.
    """
    found = {name: getattr(pipe, name, None) for name in TRANSFORMERS}
    return {name: model for name, model in found.items() if model is not None}


def check_pipeline(pipe: Any) -> dict[str, Any]:
    """Find the transformers of a pipeline that must have one.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        As `transformers_of`, not empty.

    Raises:
        TypeError: it is a model.
        TransformError: it has no transformer; the message names its class and its components.
    """
    found = transformers_of(pipe)
    if found:
        return found
    kind = type(pipe).__name__
    if isinstance(pipe, nn.Module):
        raise TypeError(
            f"pipe: expected a diffusers pipeline, found the model {kind}; freeloc_fx.transform takes a model"
        )
    try:
        parts = pipe.components
    except (AttributeError, ValueError):  # no pipeline of diffusers, or one whose components are not all there
        parts = {name: value for name, value in getattr(pipe, "__dict__", {}).items() if not name.startswith("_")}
    names = ", ".join(parts) if isinstance(parts, Mapping) else ""
    raise TransformError(
        f"pipe: expected a pipeline with a component {' or '.join(TRANSFORMERS)}, "
        f"found a {kind} with the components {names or 'none'}"
    )


def first_transformer(pipe: Any) -> Any:
    """The transformer that a generation runs first.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        The model.

    Raises:
        TypeError: `pipe` is a model.
        TransformError: the pipeline has no transformer.
    """
    return next(iter(check_pipeline(pipe).values()))
