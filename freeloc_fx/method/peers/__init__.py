"""The methods that FreeLOC is compared with, as parts of strategy names: one file a method.

Each file says where its formula comes from and what had to be chosen, and ends in the part, `PART`.
`freeloc_fx.method.catalogue` lists the parts.
"""

from __future__ import annotations

from .anchors import Anchors
from .clip import Clip
from .freelong import SpectralBlend
from .group import Group
from .longdiff import ShiftedGroups
from .ntk import NTK
from .pi import PI
from .riflex import RIFLEx
from .ultravico import UltraViCo
from .window import Window
from .yarn import YaRN

__all__ = [
    "NTK",
    "PI",
    "Anchors",
    "Clip",
    "Group",
    "RIFLEx",
    "ShiftedGroups",
    "SpectralBlend",
    "UltraViCo",
    "Window",
    "YaRN",
]
