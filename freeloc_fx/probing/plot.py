"""Sensitivity by layer with error bars, as in the paper's figure. Needs matplotlib (the `cli` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freeloc_fx.errors import ProfileError
from freeloc_fx.files import plain_label, save_figure
from freeloc_fx.planning.profile import Profile

from .result import measured_lengths
from .rule import thresholds

__all__ = ["draw"]


_NAMES = {"position": "to position", "context": "to context length"}


def draw(profile: Profile, path: Path) -> None:
    """Two panels, position and context: a bar a layer with its standard error, coloured by the layer's strategy, and
    the threshold between the two groups where there are two. Other measured lengths are dots.

    Args:
        profile: a probed one.
        path: the file to write.

    Raises:
        ProfileError: the profile carries no sensitivities.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: no window, no global state
    from matplotlib.patches import Patch

    found = profile.sensitivities
    if not found:
        raise ProfileError(f"sensitivities: expected some in profile {profile.name!r}, found none")
    names = sorted({profile.strategy_name(layer) for layer in found})
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    layers = list(found)
    figure = Figure(figsize=(max(8.0, 3.0 + 0.45 * len(layers)), 6.4), layout="constrained")
    title = f"{profile.name}: sensitivity by layer, trained on {profile.trained_frames} latent frames"
    figure.suptitle(plain_label(title))
    provenance: Any = profile.provenance or {}
    for axis, (field, heading), threshold in zip(figure.subplots(2, 1), _NAMES.items(), thresholds(found), strict=True):
        values = [getattr(found[layer], field) for layer in layers]
        errors = [getattr(found[layer], f"{field}_error") or 0.0 for layer in layers]
        axis.bar(layers, values, yerr=errors, capsize=3, color=[colours[profile.strategy_name(i)] for i in layers])
        handles: list[Any] = [Patch(color=colour, label=name) for name, colour in colours.items()]
        if threshold is not None:
            handles.append(axis.axhline(threshold, color="black", ls="--", lw=1, label=f"threshold {threshold:.3g}"))
        others = [n for n in measured_lengths(profile) if n != provenance.get("target_frames")]
        for index, frames in enumerate(others if field == "context" else ()):
            at = provenance["lengths"][str(frames)]["sensitivities"]
            points = [at[str(layer)][field] for layer in layers]
            handles += axis.plot(layers, points, ".", color=str(0.15 + 0.6 * index / len(others)), label=f"at {frames}")
        axis.set(title=heading, xlabel="layer", ylabel="sensitivity", xticks=layers)
        axis.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    save_figure(figure, path, dpi=110)
