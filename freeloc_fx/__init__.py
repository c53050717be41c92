"""freeloc_fx: compile a video diffusion transformer trained on short clips into one that generates long video."""

from __future__ import annotations

from pathlib import Path as _Path

# In a source checkout `passes` and `profiles` lie beside this folder; an install places them inside it. One entry on
# the package's search path makes `freeloc_fx.passes` and `freeloc_fx.profiles` the same modules either way.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "passes").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

from .errors import FreelocError  # noqa: E402
from .plan import Plan  # noqa: E402
from .probe import probe  # noqa: E402
from .profile import Profile  # noqa: E402
from .transform import plan, plans, restore, transform  # noqa: E402

__version__ = "0.1.0"
__all__ = ["FreelocError", "Plan", "Profile", "plan", "plans", "probe", "restore", "transform"]
