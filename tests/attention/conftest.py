"""What tests of the CPU kernel share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freeloc_fx.attention.tiles import kernel
from freeloc_fx.attention.tiles.lowering import engine


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """No kernel loaded, an empty cache of builds; what this process had comes back."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    def forget() -> None:
        for known in (kernel.load, kernel.gain, engine):
            known.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()
