"""Text embeddings that lie one after the other, with which frames see which: for one call, and for nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule

__all__ = ["TimedTexts", "refuse_timed_texts"]


_MOVES = {
    "bfloat16", "clone", "contiguous", "cpu", "cuda", "detach", "double", "float", "half", "pin_memory",
    "to", "type", "xpu",
}  # fmt: skip
"""Methods of a tensor after which it still is the same texts."""


_IN_PLACE = re.compile(
    r"(?!requires_grad_|share_memory_)[a-z]\w*[^_]_|__setitem__|__i(?!nvert|ndex|nt__|ter__|nit)[a-z]+__"
)
"""Methods and operators that change a tensor's values."""


_LAYERS = {
    "__matmul__", "__rmatmul__", "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "einsum", "group_norm",
    "inner", "layer_norm", "linear", "matmul", "mm", "multi_head_attention_forward", "mv", "rms_norm",
    "scaled_dot_product_attention", "tensordot",
}  # fmt: skip
"""What a model does with text first."""


_OUTSIDE = (
    "timeline: its texts reached {where} outside of a call of the pipeline that they were made for, where every frame "
    "would see every text; expected them as arguments of that pipeline, while freeloc_fx.enable holds it"
)


class TimedTexts(torch.Tensor):
    """Texts (batch, tokens, channels), one after the other.

    Whatever is made of them but moves (`to`, `clone`) is of this class without a schedule, as they are themselves once
    a method or operator of theirs, or an `out=`, has changed them in place (what changes a view of them, or their
    `data`, is not seen). The layers with which models begin take neither.

    Attributes:
        texts: what each latent frame sees of them; None for what was made of such texts.
    """

    texts: TextSchedule | None = None

    @staticmethod
    def of(embeds: torch.Tensor, texts: TextSchedule) -> TimedTexts:
        """Give texts their schedule.

        Args:
            embeds: (batch, tokens, channels).
            texts: what each latent frame sees of them.

        Returns:
            A tensor of its own, which shares memory.
        """
        made = embeds.as_subclass(TimedTexts)
        made.texts = texts
        return made

    def plain(self) -> torch.Tensor:
        """The same memory as an ordinary tensor."""
        return self.as_subclass(torch.Tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> TimedTexts:
        made = self.plain().clone().as_subclass(TimedTexts)
        made.texts = self.texts
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LAYERS:
            raise TimelineError(_OUTSIDE.format(where=f"a layer of a model ({name})"))
        result = super().__torch_function__(func, types, args, kwargs or {})
        first = args[0] if args else (kwargs or {}).get("input")
        changed = first if _IN_PLACE.fullmatch(name) else (kwargs or {}).get("out")
        if isinstance(changed, TimedTexts):
            changed.texts = None
        if not isinstance(result, TimedTexts):
            return result
        if name in _MOVES and isinstance(first, TimedTexts):
            result.texts = first.texts
        elif name.startswith("new_") or name.endswith("_like") or type(first) is torch.Tensor:
            return result.plain()  # other values, which take after these texts' size, dtype or device
        return result


def refuse_timed_texts(model: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a model's call whose texts have a schedule that the model was not told.

    Args:
        model: its class, for the message.
        arguments: of its forward, by name.

    Raises:
        TimelineError: one of them is, or was made of, `TimedTexts`.
    """
    for name, value in arguments.items():
        if isinstance(value, TimedTexts):
            raise TimelineError(_OUTSIDE.format(where=f"{model} ({name})"))
