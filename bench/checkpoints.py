"""Checkpoints of a training: a folder of safetensors files of at most 16 MB and one JSON file, replaced as a whole.

A checkpoint is written beside the last one and then renamed, so that whatever stops the training, at any moment, there
is a complete one. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

__all__ = ["LARGEST", "Checkpoint", "State", "read_part"]


LARGEST = 16_000_000
"""Bytes of a file at most."""


_HEADER = 200_000  # bytes that names and shapes may take in a file, generously


@dataclass
class State:
    """Where a training stands.

    Args:
        step: optimiser steps done, which is also the number of the next batch.
        curve: one row a report: step, training loss and what the stage measures beside it.
        facts: what the next run must know besides, JSON values.
    """

    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Checkpoint:
    """Modules, optimisers' moments and the curve of one stage.

    Args:
        folder: of the stage; a checkpoint is a folder "step-NNN" in it.
        modules: by the name under which each is kept.
        optimizers: whose moments are kept, in the same order on resuming.
    """

    def __init__(
        self, folder: Path, modules: Mapping[str, nn.Module], optimizers: tuple[torch.optim.Optimizer, ...] = ()
    ) -> None:
        self.folder, self.modules, self.optimizers = folder, modules, optimizers

    def save(self, state: State) -> Path:
        """Write a checkpoint and remove the older ones.

        Args:
            state: kept with it.

        Returns:
            The folder of the checkpoint.

        Raises:
            ValueError: a tensor is larger than a file may be.
        """
        tensors = {f"{name}.{k}": v for name, module in self.modules.items() for k, v in module.state_dict().items()}
        for n, optimizer in enumerate(self.optimizers):
            for i, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optim.{n}.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        final = self.folder / f"step-{state.step:08d}"
        if final.is_dir():  # nothing was trained since
            return final
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "writing"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for n, names in enumerate(_parts(tensors)):
            part = {name: tensors[name].detach().cpu().clone().contiguous() for name in names}
            save_file(part, temporary / f"part-{n:03d}.safetensors")
        text = json.dumps({"step": state.step, "curve": state.curve, "facts": state.facts})
        (temporary / "state.json").write_text(text + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            _flush(path)
        os.replace(temporary, final)
        _flush(self.folder)
        for old in _found(self.folder):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def load(self) -> State | None:
        """Read the newest checkpoint into the modules and optimisers.

        Returns:
            Its state; None where there is no checkpoint.
        """
        newest = _newest(self.folder)
        if newest is None:
            return None
        tensors = _read(newest)
        for name, module in self.modules.items():
            module.load_state_dict(_under(tensors, f"{name}."))
        for n, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in _under(tensors, f"optim.{n}.").items():
                index, name = key.split(".", 1)
                moments.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return State(**json.loads((newest / "state.json").read_text(encoding="utf-8")))


def read_part(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], State] | None:
    """Read one module's weights from a stage's newest checkpoint.

    Args:
        folder: of the stage.
        name: of the module, as `Checkpoint` was given it.

    Returns:
        Its weights and the checkpoint's state; None where there is no checkpoint.
    """
    newest = _newest(folder)
    if newest is None:
        return None
    state = State(**json.loads((newest / "state.json").read_text(encoding="utf-8")))
    return _under(_read(newest), f"{name}."), state


def _parts(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names of the tensors of each file, in order."""
    parts: list[list[str]] = [[]]
    room = LARGEST - _HEADER
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > LARGEST - _HEADER:
            raise ValueError(f"tensor {name}: expected at most {LARGEST - _HEADER} bytes, found {size}")
        if size > room:
            parts.append([])
            room = LARGEST - _HEADER
        parts[-1].append(name)
        room -= size
    return parts


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _newest(folder: Path) -> Path | None:
    found = _found(folder)
    return found[-1] if found else None


def _read(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(checkpoint.glob("part-*.safetensors")) for k, v in load_file(path).items()}


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _flush(path: Path) -> None:
    """Have the disk hold what was written, so that a rename never comes before it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
