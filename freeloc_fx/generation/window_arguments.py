"""What of a call belongs to a window of its frames: latents, controls, a time for each token, rotary tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from freeloc_fx.compiler.capture.conventions import config_of, frame_axis, latent_size, patches
from freeloc_fx.errors import LengthError

__all__ = ["WholeClip"]


_OF_TOKENS = "timestep"
"""Part of the names of arguments that may have a value for each token, or each frame, of the clip."""


_TABLES = "rotary"
"""Part of the names of arguments that have a row for each token of the clip, by its place."""


_PLACES = "rope_pos"
"""End of the names of arguments that list the places on each axis, frames first."""


@dataclass(frozen=True)
class WholeClip:
    """The clip of a call, as its model lays it out.

    Args:
        axis: of its latents that counts latent frames.
        space: of its latents that counts rows; the next one counts columns.
        frames: latent frames.
        shape: of its latents.
        step: latent frames that are one position in time.
        tokens: of one position in time.
    """

    axis: int
    space: int
    frames: int
    shape: tuple[int, ...]
    step: int
    tokens: int

    @classmethod
    def of(cls, model: nn.Module, states: Any) -> WholeClip:
        """Read the clip of a call.

        Args:
            model: that is called.
            states: its `hidden_states`.

        Raises:
            TypeError: they are no tensor of five axes.
            LengthError: a position of the model's takes several latent frames, and some are left over.
        """
        if not isinstance(states, torch.Tensor) or states.ndim != 5:
            found = tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
            raise TypeError(
                "hidden_states: expected a batch of clips (batch, channels, frames, height, width), or these axes in "
                f"the model's own order, found {found}"
            )
        size = latent_size({"hidden_states": states}, model)
        assert size is not None
        frames, height, width = size
        step, high, wide = patches(model)
        if frames % step:
            raise LengthError(f"hidden_states: expected a multiple of the patch's {step} latent frames, found {frames}")
        axis = frame_axis(model)
        space = 2 if axis == 1 and "in_visual_dim" in config_of(model) else 3
        return cls(axis, space, frames, tuple(states.shape), step, (height // high) * (width // wide))

    @property
    def positions(self) -> int:
        """Positions in time."""
        return self.frames // self.step

    def latent_frames(self, window: Sequence[int]) -> list[int]:
        """The latent frames of some positions in time.

        Args:
            window: the positions.
        """
        return [position * self.step + k for position in window for k in range(self.step)]

    def cut(self, arguments: Mapping[str, Any], window: Sequence[int]) -> dict[str, Any]:
        """What a window's call gets in place of the clip's.

        Args:
            arguments: by name.
            window: positions in time, in the window's order.

        Returns:
            The same names; tensors of the clip's own size have the window's frames, those of a value a token or a frame
            have the window's values, rotary tables have the rows of the clip's first positions, since each window is a
            clip of its own. All else is as it was.
        """
        return {name: self._cut(name, value, window) for name, value in arguments.items()}

    def _cut(self, name: str, value: Any, window: Sequence[int]) -> Any:
        if name.endswith(_PLACES) and isinstance(value, (list, tuple)) and len(value) == 3:
            first = value[0][: len(window)]
            return [first, *value[1:]] if isinstance(value, list) else (first, *value[1:])
        if isinstance(value, (list, tuple)):
            parts = [self._cut(name, each, window) for each in value]
            return parts if isinstance(value, list) else tuple(parts)
        if not isinstance(value, torch.Tensor):
            return value
        of_frames = _OF_TOKENS in name and value.ndim == 5 and value.shape[self.axis] == self.frames
        if of_frames or (value.ndim == 5 and self._is_clip(value)):
            return self.part(value, window)
        count = self.positions * self.tokens
        if _OF_TOKENS in name and value.ndim > 1 and value.shape[0] in (1, self.shape[0]):
            for whole, unit, places in (
                (count, self.tokens, window),
                (self.frames, 1, self.latent_frames(window)),
                (self.positions, 1, window),
            ):
                if value.shape[1] == whole and whole > 1:
                    cells = value.unflatten(1, (-1, unit))
                    return cells.index_select(1, torch.tensor(places, device=value.device)).flatten(1, 2)
        if _TABLES in name:
            for axis, size in enumerate(value.shape):
                if size == count:
                    return value.narrow(axis, 0, len(window) * self.tokens)
        return value

    def _is_clip(self, value: torch.Tensor) -> bool:
        """Whether a tensor has the clip's frames, height and width, of other channels or samples perhaps."""
        return all(value.shape[axis] == self.shape[axis] for axis in (self.axis, self.space, self.space + 1))

    def part(self, value: torch.Tensor, window: Sequence[int]) -> torch.Tensor:
        """A window's frames of a tensor of the clip's size.

        Args:
            value: of five axes.
            window: positions in time.
        """
        return value.index_select(self.axis, torch.tensor(self.latent_frames(window), device=value.device))
