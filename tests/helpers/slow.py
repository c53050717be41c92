"""Parameters of a test that only `pytest -m slow` takes."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["slow"]


def slow(*values: Any, id: str | None = None) -> Any:
    """One set of a parametrised test's values that is marked slow: others show the same in less time."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)
