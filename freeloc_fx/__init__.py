"""freeloc_fx: compile a video diffusion transformer trained on short clips into one that generates long video."""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING, Any

from .checkout import find_beside as _find_beside
from .files import installed_version as _installed_version
from .moved import MOVED as _MOVED
from .moved import keep_old_names as _keep_old_names

if TYPE_CHECKING:
    from .attention.running import denoising_step
    from .compiler.transform import plan, plans, restore, transform
    from .errors import FreelocError
    from .generation.enabling import disable, enable, is_transformed, plan_for
    from .generation.noise import freenoise
    from .generation.timeline import timeline
    from .generation.windows import context_windows
    from .method.catalogue import strategies
    from .method.positions import VRPR
    from .method.visibility import TSA
    from .planning.plan import Plan
    from .planning.profile import Profile
    from .probing import probe

__all__ = [
    "TSA",
    "VRPR",
    "FreelocError",
    "Plan",
    "Profile",
    "__version__",
    "context_windows",
    "denoising_step",
    "disable",
    "enable",
    "freenoise",
    "is_transformed",
    "plan",
    "plan_for",
    "plans",
    "probe",
    "restore",
    "strategies",
    "timeline",
    "transform",
]

# Names that are imported when they are first asked for, and where they are: torch takes seconds, in which Ctrl-C on the
# command line already has to be answered.
_LATER = {
    "TSA": "method.visibility",
    "VRPR": "method.positions",
    "FreelocError": "errors",
    "Plan": "planning.plan",
    "Profile": "planning.profile",
    "context_windows": "generation.windows",
    "denoising_step": "attention.running",
    "disable": "generation.enabling",
    "enable": "generation.enabling",
    "freenoise": "generation.noise",
    "is_transformed": "generation.enabling",
    "plan": "compiler.transform",
    "plan_for": "generation.enabling",
    "plans": "compiler.transform",
    "probe": "probing",
    "restore": "compiler.transform",
    "strategies": "method.catalogue",
    "timeline": "generation.timeline",
    "transform": "compiler.transform",
}
_ROOMS = ("attention", "compat", "compiler", "graph", "method", "passes", "planning", "probing")


__version__ = _installed_version()


_find_beside(__name__)
_keep_old_names(__name__)


if not TYPE_CHECKING:  # a type checker would take any name for one of this package

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            value = getattr(_importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
            globals()[name] = value
            return value
        if name in _ROOMS or name in _MOVED:
            return _importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
