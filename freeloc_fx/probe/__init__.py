"""Probing: which layers are sensitive to position and to context, measured on the model itself."""

from .run import probe
from .statistics import ProbeSettings

__all__ = ["ProbeSettings", "probe"]
