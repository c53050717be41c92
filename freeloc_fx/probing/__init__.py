"""Probing: which layers are sensitive to position and to context, measured on the model itself."""

from .result import for_length, measured_lengths
from .run import probe
from .statistics import ProbeSettings

__all__ = ["ProbeSettings", "for_length", "measured_lengths", "probe"]
