"""Kernels that a model looks up while it runs: in a module imported by its name, or in no way that a graph holds."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from literal import attention, literal
from test_other_code_bases import PROFILE, TRAINED, OfTokens, result, tokens
from torch import nn

from freeloc_fx import plans, transform
from freeloc_fx.errors import CaptureError

TURN = """
import torch

SCALE = 1.0

def turn(q, k, turns):
    cos, sin = (part[:, None] for part in turns.chunk(2, -1))
    def one(x):
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2) * SCALE
    return one(q), one(k)
"""


class Lazily(nn.Module):
    """An attention whose RoPE is looked up at each call, by a name that may be relative to its package."""

    def __init__(self, inner: nn.Module, name: str, package: str, relative: bool) -> None:
        super().__init__()
        self.inner, self.name, self.package, self.relative = inner, name, package, relative

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (2, -1)) for y in self.inner.qkv(x).chunk(3, -1))
        if self.relative:
            kernels: Any = import_module(f".for_{self.name}", package=self.package)
        else:
            kernels = import_module(f"{self.package}.for_{self.name}")
        q, k = kernels.turn(q, k, turns)
        for name, more in (("for_a_device_without_any", 0.5), ("broken", 2.0), ("without_library", 8.0)):
            try:
                import_module(f"{self.package}.{name}")
            except ModuleNotFoundError:
                v = v + more
            except ImportError:
                v = v - more
            except OSError:
                v = v * more
        out = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
        found: torch.Tensor = self.inner.o(out.transpose(1, 2).flatten(2))
        return found


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that was never imported."""
    folder = tmp_path / f"kernels_of_{tmp_path.name}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for device in ("cpu", "other"):
        (folder / f"for_{device}.py").write_text(TURN)
    (folder / "broken.py").write_text("from math import no_such_name\n")
    (folder / "without_library.py").write_text("raise OSError('libkernels.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder.name


def lazily(package: str) -> OfTokens:
    torch.manual_seed(0)
    model = OfTokens("lends").eval().requires_grad_(False)
    for block, name in zip(model.blocks, ("cpu", "other"), strict=True):
        block.attn = Lazily(block.attn, name, package, name == "other")  # type: ignore[assignment]
    return model


def test_a_module_imported_by_its_name(package: str) -> None:
    model = lazily(package)
    changed = transform(model, PROFILE, backend="eager", attention="calls")
    short, long = tokens(TRAINED, 2), tokens(2 * TRAINED, 2)
    within = result(changed, short)  # imports it
    assert torch.equal(within, result(model, short))
    found = result(changed, long)
    plan = plans(changed)[-1]
    assert (plan.rewritten, plan.grid.frames) == (2, 2 * TRAINED)
    with attention(literal(plan, F.scaled_dot_product_attention)):
        expected = result(model, long)
    assert (found - expected).norm() <= 1e-4 * expected.norm()

    kernels: Any = sys.modules[f"{package}.for_cpu"]
    kernels.SCALE = 0.5  # what a captured graph read of the module is looked at again
    assert torch.equal(result(changed, short), result(model, short))
    assert not torch.equal(result(changed, short), within)


# What stays refused says where


_LIBRARY = torch.library.Library("manner_bare", "FRAGMENT")
_LIBRARY.define("shift(Tensor x) -> Tensor")
_LIBRARY.impl("shift", lambda x: x + 1, "CPU")


class Bare(nn.Module):
    """A block that calls an operator that does not say what it gives, or one whose addresses it compares."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how
        self.kept: tuple[int, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, turns: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x, turns, times)
        if self.how == "operator":
            shifted: torch.Tensor = torch.ops.manner_bare.shift(found)
            return shifted
        return found + self.weight()

    def weight(self) -> torch.Tensor:
        weight = self.inner.norm.weight
        if self.kept is None or self.kept[0] != weight.data_ptr():
            self.kept = (weight.data_ptr(), weight.double().float())
        return self.kept[1]


@pytest.mark.parametrize(("how", "named"), [
    ("operator", r"operator manner_bare\.shift\.default, at test_chosen_by_name\.py:\d+ \(forward\)"),
    # The second is what torch 2.11 says.
    ("address", r"(Data pointer comparison, at test_chosen_by_name\.py:\d+ \(weight\)|DataPtrVariable)"),
])  # fmt: skip
def test_what_cannot_be_captured_is_named_with_its_place(how: str, named: str) -> None:
    torch.manual_seed(0)
    model = OfTokens("both").eval().requires_grad_(False)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = Bare(block, how)
    result(model, tokens(TRAINED))
    changed = transform(model, PROFILE, backend="eager")
    with pytest.raises(CaptureError, match=rf"^blocks\.0 cannot be captured as one graph: .*{named}"):
        result(changed, tokens(2 * TRAINED))
