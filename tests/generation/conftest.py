"""What tests of pipelines share: a small one on disk, and loaded anew for each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipelines
import pytest

from freeloc_fx.generation import pipelines as library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pipe(folder: Path) -> Any:
    return library.load_pipeline(folder)
