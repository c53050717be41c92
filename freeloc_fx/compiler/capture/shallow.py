"""Copies of a model that share its weights."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["shallow_copy"]

Model = TypeVar("Model", bound=nn.Module)


def shallow_copy(model: Model) -> Model:
    """A model of the same class with the same attributes: submodules, parameters and hooks are those of the original.

    `copy.copy` asks the class for a new object, and a class that FSDP2 has taken over (FSDPModule) answers by building
    the whole model anew with its default sizes.

    Args:
        model: to be copied.
    """
    made = object.__new__(type(model))
    made.__dict__.update(model.__dict__)
    return made
