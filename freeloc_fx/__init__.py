"""freeloc_fx: compile a video diffusion transformer trained on short clips into one that generates long video."""

from __future__ import annotations

import importlib as _importlib
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

# In a source checkout `passes` and `profiles` lie beside this folder; an install places them inside it. One entry on
# the package's search path makes `freeloc_fx.passes` and `freeloc_fx.profiles` the same modules either way.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "passes").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

from . import compat as _compat  # noqa: E402
from .compiler.transform import plan, plans, restore, transform  # noqa: E402
from .errors import FreelocError  # noqa: E402
from .files import installed_version as _installed_version  # noqa: E402
from .planning.plan import Plan  # noqa: E402
from .planning.profile import Profile  # noqa: E402
from .probing import probe  # noqa: E402

if TYPE_CHECKING:
    from .attention.running import denoising_step
    from .generation.enabling import disable, enable, is_transformed, plan_for
    from .generation.noise import freenoise
    from .generation.windows import context_windows
    from .method.catalogue import strategies
    from .method.positions import VRPR
    from .method.visibility import TSA

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
    "transform",
]

# Names that are imported when they are first asked for, and where they are.
_LATER = {
    "TSA": "method.visibility",
    "VRPR": "method.positions",
    "context_windows": "generation.windows",
    "denoising_step": "attention.running",
    "disable": "generation.enabling",
    "enable": "generation.enabling",
    "freenoise": "generation.noise",
    "is_transformed": "generation.enabling",
    "plan_for": "generation.enabling",
    "strategies": "method.catalogue",
}


__version__ = _installed_version()

_compat.keep_old_names(__name__)


if not TYPE_CHECKING:  # a type checker would take any name for one of this package

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            value = getattr(_importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
            globals()[name] = value
            return value
        if name in _compat.MOVED:
            return _importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
