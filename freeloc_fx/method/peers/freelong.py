"""Low frequencies of global attention, high ones of local: the part "freelong".

FreeLong (Lu et al., NeurIPS 2024, arXiv 2407.19918, "SpectralBlend"): two attentions of every layer, over
all frames and over a window of the trained length, blended by a 3-D Fourier transform of their outputs over frames,
rows and columns. Both keep the model's positions. The paper starts from FreeNoise's noise
(`freeloc_fx.generation.noise`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from freeloc_fx.errors import StrategyError
from freeloc_fx.method import checks
from freeloc_fx.method.mixture import check_members, check_outputs
from freeloc_fx.method.parts import Part
from freeloc_fx.method.strategy import Geometry, Strategy

from .window import Window

__all__ = ["SpectralBlend", "local"]


_CHECKS = {"cutoff": checks.number(0), "spatial": checks.number(0), "window": checks.whole(1)}


@dataclass(frozen=True)
class SpectralBlend:
    """One band of frequencies from each strategy, from the lowest to the highest.

    With F the Fourier transform over (t, h, w) and Gaussian low-pass filters of rising temporal width

        LPF_b(f) = exp(-((f_t/cutoffs[b])^2 + (f_h/spatial)^2 + (f_w/spatial)^2) / 2),    b = 0 .. n-2,

    strategy b has the band LPF_b - LPF_(b-1), where LPF_(-1) = 0 and LPF_(n-1) = 1. The bands are not negative and sum
    to 1. Frequencies are relative to half the sampling rate, so 1 is the highest there is. Two strategies are FreeLong:
    F^-1(LPF F(global) + (1 - LPF) F(local)). The authors' filter is off centre by half a bin along axes of odd length,
    and so lets a little of the mean come from local attention; this one is centred.

    Args:
        strategies: n >= 1 strategies, none with a mixture of its own, from the one that gives the lowest frequencies.
        cutoffs: temporal widths of the n - 1 filters, rising numbers above 0.
        spatial: width of all filters along rows and columns, above 0.

    Raises:
        StrategyError: they are not.
    """

    strategies: tuple[Strategy, ...]
    cutoffs: tuple[float, ...] = (0.25,)
    spatial: float = 0.25

    def __post_init__(self) -> None:
        check_members("freelong", self.strategies)
        if not isinstance(self.cutoffs, tuple) or len(self.cutoffs) != len(self.strategies) - 1:
            expected = f"expected a tuple of {len(self.strategies) - 1} cutoffs, one between each two strategies"
            raise StrategyError(f"freelong.cutoffs: {expected}, found {self.cutoffs!r}")
        for index, value in enumerate(self.cutoffs):
            checks.number(0)(f"freelong.cutoffs.{index}", value)
        if list(self.cutoffs) != sorted(self.cutoffs):
            raise StrategyError(f"freelong.cutoffs: expected rising numbers, found {self.cutoffs!r}")
        checks.number(0)("freelong.spatial", self.spatial)

    def low_pass(self, cutoff: float, frames: int, height: int, width: int) -> torch.Tensor:
        """Give the low-pass filter at the frequencies of `torch.fft.rfftn`.

        Args:
            cutoff: the filter's temporal width, relative to half the sampling rate.
            frames: latent frames of the clip.
            height: rows of tokens in one latent frame.
            width: columns of tokens in one latent frame.

        Returns:
            float64 (frames, height, width // 2 + 1).
        """
        axes = (
            torch.fft.fftfreq(frames, dtype=torch.float64) * 2 / cutoff,
            torch.fft.fftfreq(height, dtype=torch.float64) * 2 / self.spatial,
            torch.fft.rfftfreq(width, dtype=torch.float64) * 2 / self.spatial,
        )
        t, h, w = (axis.square() for axis in axes)
        return torch.exp(-(t[:, None, None] + h[:, None] + w) / 2)

    def combine(self, outputs: Sequence[torch.Tensor], frames: int, height: int, width: int) -> torch.Tensor:
        check_outputs("freelong", len(self.strategies), outputs, frames * height * width)
        last = outputs[-1]
        if len(outputs) == 1:
            return last
        work = torch.promote_types(last.dtype, torch.float32)
        grid = (frames, height, width)
        filters = [self.low_pass(cutoff, *grid)[..., None].to(last.device, work) for cutoff in self.cutoffs]
        result = torch.empty_like(last)
        # The sum over bands, telescoped: x_last + sum_b F^-1(LPF_b F(x_b - x_(b+1))). A head at a time, because a
        # spectrum is as large as its input in float32.
        for head in range(last.shape[1]):
            spectrum = torch.zeros((), device=last.device, dtype=torch.float32)
            for low, lower, upper in zip(filters, outputs, outputs[1:], strict=False):
                band = (lower[:, head].to(work) - upper[:, head]).unflatten(1, grid)
                spectrum = torch.fft.rfftn(band, dim=(1, 2, 3)).mul_(low).add_(spectrum)
            blended = torch.fft.irfftn(spectrum, s=grid, dim=(1, 2, 3)).flatten(1, 3)
            result[:, head] = blended.add_(last[:, head])
        return result

    def with_strategies(self, strategies: tuple[Strategy, ...]) -> SpectralBlend:
        return replace(self, strategies=strategies)

    def describe(self) -> dict[str, Any]:
        return {"kind": "spectral blend", "cutoffs": list(self.cutoffs), "spatial": self.spatial}


def local(length: int) -> Strategy:
    """Make the strategy of attention within the frames around the query, without a sink.

    local(5) in a clip of 10 latent frames:

        ###.......
        ####......
        #####.....
        .#####....
        ..#####...
        ...#####..
        ....#####.
        .....#####
        ......####
        .......###

    Args:
        length: latent frames of the window, the query's own among them, at least 1. An even number means one fewer.

    Returns:
        The strategy.
    """
    return Strategy(f"local {length}", visibility=Window((length - 1) // 2, sink=False))


def _freelong(geometry: Geometry, own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Low frequencies of attention over all frames, high ones of attention within a window.

    Unless set: both cutoffs 0.25 and a window of the trained length L, so (L - 1)/2 latent frames to either side.
    """
    window = own.get("window", geometry.trained_frames)
    if window > geometry.frames:
        raise StrategyError(f"freelong.window: expected at most the {geometry.frames} frames, found {window}")
    strategies = (Strategy("global"), local(window))
    return {"mixture": SpectralBlend(strategies, (own.get("cutoff", 0.25),), own.get("spatial", 0.25))}


PART = Part("freelong", _freelong, sets=("mixture",), settings=_CHECKS, mixes=("visibility",))
