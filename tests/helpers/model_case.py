"""What a tiny model of a class is made of, and what is to be found in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Case", "powers"]


@dataclass(frozen=True)
class Case:
    """One class and what is to be found in it.

    config: of the tiny model. sites: paths of the attentions that are found. omega: radians per frame of the temporal
    pairs, as the class's own formula gives them; None where heads differ or the values are learned. pairing: how
    channels are paired. text: text tokens before and after the video, of ten latent frames where sound is among them.
    patch: latents of one token. size: latent height and width of an example. regions: captured block by block. lora:
    modules for adapters. change: what to do to the model after it is made. branches: attentions over the clip's tokens
    in a layer, of which the first is found. refused: what the error says, for a class that is refused.
    """

    cls: str
    config: Mapping[str, Any]
    sites: tuple[str, ...]
    omega: Callable[[], list[float]] | None = None
    pairing: str = "interleaved"
    text: tuple[int, int] = (0, 0)
    patch: tuple[int, int, int] = (1, 2, 2)
    size: tuple[int, int] = (4, 6)
    regions: bool = False
    lora: tuple[str, ...] = ("to_q", "to_k", "to_v")
    change: Callable[[Any], None] = field(default=lambda model: None)
    branches: int = 1
    refused: str = ""


def powers(theta: float, dim: int, scale: float = 1.0) -> Callable[[], list[float]]:
    """Radians per frame of a class that takes powers of theta."""
    return lambda: [scale * theta ** (-2 * i / dim) for i in range(dim // 2)]
