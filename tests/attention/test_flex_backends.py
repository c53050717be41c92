"""The gate before FlexAttention's FLASH kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.flex import backends
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.errors import CaptureError

FLASH = FlexOptions((("BACKEND", "FLASH"),))
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_errors", Cache(4))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")


def check(options: FlexOptions = FLASH) -> None:
    backends.check_backend(options, CUDA, torch.bfloat16, 64)


@pytest.mark.parametrize(("version", "refused"), [("2.12.1", True), ("2.13.0+cu130", False), ("2.14.0", False)])
def test_versions_before_the_right_log_sum_exp_are_refused(
    version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(backends, "log_sum_exp_error", lambda *_: 0.001)
    if not refused:
        return check()
    with pytest.raises(CaptureError, match=r"wants torch 2\.13, found 2\.12\.1"):
        check()


@pytest.mark.parametrize("error", [math.log(2), math.nan])
def test_a_wrong_log_sum_exp_is_refused_and_measured_once(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(backends, "log_sum_exp_error", lambda *given: (asked.append(given), error)[1])
    for _ in range(2):
        with pytest.raises(CaptureError, match="log-sum-exp differs by"):
            check()
    assert len(asked) == 1


def test_other_kernels_are_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "log_sum_exp_error", lambda *_: math.inf)
    check(FlexOptions())
    check(FlexOptions((("BACKEND", "TRITON"),)))


def test_the_measurement_finds_the_plain_formula_right() -> None:
    assert backends.log_sum_exp_error(FlexOptions(), torch.device("cpu"), torch.float32, 16) <= 1e-5
