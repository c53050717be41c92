"""The operator that reads a model's key-padding mask in rewritten graphs.

freeloc_fx.visible_keys(mask, batch, tokens, text_first, video)
"""

from __future__ import annotations

import torch

from freeloc_fx.compat import assert_on_device

__all__ = ["OPERATOR", "visible_keys"]

_LIBRARY = torch.library.Library("freeloc_fx", "FRAGMENT")
_LIBRARY.define("visible_keys(Tensor mask, int batch, int tokens, int text_first, int video) -> Tensor")


def _visible(mask: torch.Tensor, batch: int, tokens: int, text_first: int, video: int) -> torch.Tensor:
    rows = mask
    if mask.dtype != torch.bool:
        rows = mask > -1e4
        assert_on_device(
            (~rows | (mask == 0)).all(), "key mask: expected additive values of 0 or at most -1e4, found others"
        )
    rows = rows.reshape(-1, rows.shape[-1]).expand(batch, tokens)
    assert_on_device(
        rows.narrow(1, text_first, video).all(), "key mask: expected every video token to be visible, found masked ones"
    )
    return rows


_LIBRARY.impl("visible_keys", _visible, "CompositeImplicitAutograd")

OPERATOR = torch.ops.freeloc_fx.visible_keys.default
"""The operator as a graph calls it."""


def visible_keys(mask: torch.Tensor, batch: int, tokens: int, text_first: int, video: int) -> torch.Tensor:
    """Which keys a model's padding mask lets count, in operations that a compiler can trace.

    That it hides nothing but text is asserted on the device, without waiting for it.

    Args:
        mask: (batch or 1, 1, 1, tokens or 1), the axes of 1 and then the first may be missing: bool, True for visible,
            or additive, see `text.valid_keys`.
        batch: samples.
        tokens: of the sequence.
        text_first: text tokens before the video.
        video: video tokens.

    Returns:
        bool (batch, tokens).

    Raises:
        RuntimeError: on CPU, where it runs: the mask hides video tokens, or holds other values than 0 and at most -1e4.
    """
    result: torch.Tensor = OPERATOR(mask, batch, tokens, text_first, video)
    return result
