"""What is kept on a transformed model, and the lock of everybody who shares its weights."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from threading import Lock, RLock
from typing import Any

import torch
from torch import nn

from freeloc_fx.compiler.backend import Backend
from freeloc_fx.errors import TransformError

from .given_back import STATE, Additions
from .units import UnitCheck

__all__ = ["WINDOWS", "State", "lock_of", "state_of"]

WINDOWS = "_freeloc_windows"
"""Attribute of a model that `generation.windows` runs on parts of a clip."""

log = logging.getLogger("freeloc_fx")


class State:
    """Kept on a transformed model: the original and the backend.

    Refuses to be copied or pickled, since a copy would silently lose the rewrite.

    Args:
        original: the untouched model.
        result: the transformed one.
        backend: through which its calls go.

    Attributes:
        calls: how many calls were made, for callers who want to know that the model was called at all.
        units: notices a trained length in frames of the video.
        additions: what others have put onto the transformed model since it was made.
    """

    def __init__(self, original: nn.Module, result: nn.Module, backend: Backend) -> None:
        self.original, self.backend = original, backend
        self.result = weakref.ref(result)
        self.calls = 0
        self._warned = False
        self.units = UnitCheck(type(result).__name__, backend.profile)
        before = state_of(result)  # of a model that is given another backend
        self.additions: Additions = Additions(result) if before is None else before.additions
        vars(result)[STATE] = self

    def warn_of_gradients(self, given: Mapping[str, Any]) -> None:
        """Say once that a call carries no gradient, where somebody seems to want one.

        Args:
            given: forward's arguments by name.
        """
        if self._warned or not torch.is_grad_enabled():
            return
        leaves = (value for value in given.values() if isinstance(value, torch.Tensor))
        model = self.result()
        trains = model is not None and model.training and any(weight.requires_grad for weight in model.parameters())
        if trains or any(value.requires_grad for value in leaves):
            self._warned = True
            log.warning(
                "%s: a transformed model is for inference, its output carries no gradient; expected torch.no_grad() "
                "around the call, or restore(model) to train",
                type(self.original).__name__,
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        raise TransformError("a transformed model cannot be deep-copied: copy restore(model) and transform the copy")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TransformError("a transformed model cannot be pickled: save restore(model), or use save_pretrained")


def state_of(model: nn.Module) -> State | None:
    """What transform keeps on its result; None for a model that is not transformed.

    A shallow copy of a transformed model carries the record but not the compiled call: it is not transformed.
    """
    found = vars(model).get(STATE)
    return found if isinstance(found, State) and found.result() is model else None


_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_GUARD = Lock()


def lock_of(owner: Any) -> Any:
    """The lock that everybody takes who uses one object, one after the other; the same for as long as the object lives.

    Calls of all transformed versions of a model take the original's: a capture puts marks and compiled calls on the
    blocks, which the versions share.

    Args:
        owner: an untransformed model, or another object that can be weakly referenced.
    """
    with _GUARD:
        return _LOCKS.setdefault(owner, RLock())
