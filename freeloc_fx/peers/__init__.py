"""The methods that FreeLOC is compared with, as parts of strategy names: one file a method, on one mechanism.

Importing this package registers them. Each file says where its formula comes from and what had to be chosen.
"""

from __future__ import annotations

from . import anchors, clip, freelong, freelong_plus, group, longdiff, ntk, pi, riflex, ultravico, window, yarn
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
    "anchors",
    "clip",
    "freelong",
    "freelong_plus",
    "group",
    "longdiff",
    "ntk",
    "pi",
    "riflex",
    "ultravico",
    "window",
    "yarn",
]
