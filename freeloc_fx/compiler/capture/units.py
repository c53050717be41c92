"""Notices a trained length that was given in frames of the video where latent frames were meant."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from freeloc_fx.planning.plan import Plan
from freeloc_fx.planning.profile import Profile

__all__ = ["UnitCheck"]

log = logging.getLogger("freeloc_fx")

_LONGEST_TRAINED = 33
"""Latent frames of the longest training clips among diffusers' video transformers (HunyuanVideo's 129 frames)."""
_LEAST_COMPRESSION = 4
"""Video frames that a latent frame stands for, in the VAEs that compress time least."""


class UnitCheck:
    """Warns, once for each length, where a clip is long if the profile's trained length is read as video frames.

    Such a clip counts as within the trained length, so nothing is rewritten and nothing else says so. Only for profiles
    made by hand, and only for lengths that no model is trained on in latent frames.

    Args:
        model: class name of the model, for the message.
        profile: of the model.

    Attributes:
        quiet: whether somebody who knows more, the pipeline, has said it.
    """

    def __init__(self, model: str, profile: Profile) -> None:
        self.model, self.profile = model, profile
        self.quiet = False
        self._said: set[int] = set()

    @property
    def spoke(self) -> bool:
        """Whether it has warned."""
        return bool(self._said)

    def look_at(self, plans: Sequence[Plan]) -> None:
        """Look at the plans of a call that was captured just now."""
        trained = self.profile.trained_frames
        if self.quiet or self.profile.model is not None or trained <= _LONGEST_TRAINED:
            return
        for plan in plans:
            frames = plan.grid.frames
            long = _LEAST_COMPRESSION * (frames - 1) + 1 > trained
            if plan.sites and not plan.rewritten and frames <= trained and long and frames not in self._said:
                self._said.add(frames)
                meant = (trained - 1) // _LEAST_COMPRESSION + 1
                log.warning(
                    "%s: profile %r: trained_frames=%d counts latent frames, so this clip of %d latent frames is "
                    "within the trained length and nothing is rewritten; if %d was meant as frames of the video, write "
                    "trained_frames=%d (for a VAE that makes %d of one)",
                    self.model,
                    self.profile.name,
                    trained,
                    frames,
                    trained,
                    meant,
                    _LEAST_COMPRESSION,
                )
