"""The loop that trains a stage: clips that never repeat, a budget of minutes or steps, checkpoints, validation."""

from __future__ import annotations

import copy
import functools
import math
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from checkpoints import Checkpoint, State
from torch import nn
from torch.utils.data import DataLoader, Dataset

from freeloc_fx.generation.tiny_wan.drawing import varied
from freeloc_fx.generation.tiny_wan.scenes import Scene

__all__ = ["Budget", "Clips", "Stage", "autocast", "is_quick_at_bfloat16", "to_pixels", "train"]


VARIED = 0.6
"""Share of clips whose prompt leaves things open; the others are of the grammar that tells everything."""


class Clips(Dataset):
    """Batches of rendered clips, each drawn from a generator of its own key: no two batches are the same.

    Args:
        seed, key: of the training and of what the clips are for.
        batch: clips a batch.
        frames: of a clip.
        first: number of the first batch.
        count: batches at most.
        prepare: what becomes of a batch's clips where they are drawn; None to leave them.
    """

    def __init__(
        self, seed: int, key: int, batch: int, frames: int, first: int = 0, count: int = 1 << 40,
        prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.seed, self.key, self.batch, self.frames = seed, key, batch, frames
        self.first, self.count, self.prepare = first, count, prepare

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, list[str]]:
        """uint8 (batch, frames, height, width, 3), or what `prepare` makes of it, and the prompts."""
        clips, prompts = [], []
        for b in range(self.batch):
            rng = np.random.default_rng((self.seed, self.key, self.first + index, b))
            scene = varied(rng) if rng.random() < VARIED else Scene.random(rng)
            clips.append((scene.render(self.frames) * 255 + 0.5).astype(np.uint8))
            prompts.append(scene.prompt)
        batch = torch.from_numpy(np.stack(clips))
        return (batch if self.prepare is None else self.prepare(batch)), prompts


class _InOrder(torch.utils.data.Sampler):
    """0, 1, 2, ... without a list of them all."""

    def __iter__(self) -> Iterator[int]:
        index = 0
        while True:
            yield index
            index += 1


def _same(item: Any) -> Any:
    return item


def to_pixels(clips: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (batch, frames, height, width, 3) as float32 (batch, 3, frames, height, width) in [-1, 1]."""
    return clips.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@functools.cache
def is_quick_at_bfloat16(device: torch.device) -> bool:
    """CUDA, processors with AMX, and those whose AVX512 multiplies bfloat16 at least half again as fast as float32.

    An AMD EPYC does; an Intel Xeon whose AMX is switched off takes twice as long for it. Any other emulates it a
    hundred times more slowly.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if torch.cpu._is_amx_tile_supported() or not torch.cpu._is_avx512_bf16_supported():
        return torch.cpu._is_amx_tile_supported()
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, times = torch.ones(2048, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype), []
        for _ in range(6):
            started = time.perf_counter()
            F.linear(x, weight)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    return seconds[torch.float32] > 1.5 * seconds[torch.bfloat16]


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_quick_at_bfloat16(device))


@dataclass
class Budget:
    """How long a run trains.

    Args:
        seconds: of this run; infinite for none.
        steps: of the whole training, earlier runs included; None for none.
        cooldown: share of it, at the end, in which the learning rate falls to nearly nothing.
    """

    seconds: float = math.inf
    steps: int | None = None
    cooldown: float = 0.25

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def progress(self, step: int) -> float:
        """0 at the start, 1 when it is used up."""
        by_time = (time.monotonic() - self.started) / self.seconds
        return max(by_time, step / self.steps if self.steps is not None else 0.0)

    def rate(self, step: int, peak: float, warmup: int = 100) -> float:
        """Learning rate: a ramp, level, and a straight way down. Which steps are level does not change the batches, so
        a later run goes on from the level as if nothing had cooled down."""
        left = (1 - self.progress(step)) / self.cooldown
        return peak * min((step + 1) / warmup, 1.0, max(left, 0.02))


class Stage(ABC):
    """What is trained, and on what.

    Attributes:
        name: of its folder.
        key: of its clips' generators.
        batch, frames: of its clips.
        model: what the optimisers change.
        average: the moving average of `model`, which is what is measured and used.
        optimizers: of `model`.
        peak: learning rate.
        decay: of the average.
    """

    name: str
    key: int
    batch: int
    frames: int
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    peak: float
    decay: float = 0.999

    def finish(self, model: nn.Module) -> None:
        """Set what every stage has, once `model` has its first weights."""
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)

    def prepare(self, clips: torch.Tensor) -> torch.Tensor:
        """What can be made of a batch's clips beside the training, in the processes that draw them."""
        return clips

    @abstractmethod
    def loss(self, clips: torch.Tensor, prompts: list[str], step: int) -> torch.Tensor:
        """Loss of a batch of `Clips`, prepared; whatever is random in it depends on the step alone."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Measures of `average` on clips that are never trained on."""


class _Asked:
    """Whether the process was asked to stop; a second time stops at once."""

    def __init__(self) -> None:
        self.stop = False

    def __enter__(self) -> _Asked:
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, _: FrameType | None) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        print(f"signal {number}: stopping after this step", flush=True)


def train(
    stage: Stage,
    checkpoint: Checkpoint,
    budget: Budget,
    *,
    seed: int,
    device: torch.device,
    save_every: float = 40.0,
    report_every: float = 60.0,
    compiled: bool = False,
    workers: int | None = None,
) -> State:
    """Train a stage until its budget is used up or the process is asked to stop, from its checkpoint where it has one.

    Args:
        stage: what to train.
        checkpoint: of `stage.model`, `stage.average` and the optimisers.
        budget: how long.
        seed: of the clips and of all noise.
        device: where.
        save_every: seconds between two checkpoints; a step's time comes on top.
        report_every: seconds between two validations at least; they take a twentieth of the time at most.
        compiled: whether the stage compiles what it runs, which is only reported.
        workers: processes that draw and prepare clips beside the training; 0 for none, None for as many as a GPU needs
            and none on CPU.

    Returns:
        The state of the last checkpoint.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is from before.
    """
    state = checkpoint.load() or State()
    begin = state.step
    if workers is None:
        workers = 0 if device.type == "cpu" else max(1, min(14, (os.cpu_count() or 2) - 1))
    clips = Clips(seed, stage.key, stage.batch, stage.frames, first=state.step, prepare=stage.prepare)
    loader = iter(DataLoader(clips, batch_size=None, sampler=_InOrder(), num_workers=workers, collate_fn=_same,
                             pin_memory=device.type == "cuda", prefetch_factor=2 if workers else None))  # fmt: skip
    print(f"{stage.name}: from step {state.step} on {device}, {'compiled' if compiled else 'not compiled'}", flush=True)
    saved = reported = time.monotonic()
    cost = 0.0  # seconds of a validation
    losses: list[torch.Tensor] = []

    def report() -> None:
        nonlocal reported, losses, cost
        start = time.monotonic()
        loss = float(torch.stack(losses).mean()) if losses else math.nan
        if not math.isfinite(loss):
            raise FloatingPointError(f"{stage.name} at step {state.step}: expected a finite loss, found {loss}")
        with torch.no_grad():
            measured = stage.validate()
        rate = (state.step - begin) / (time.monotonic() - budget.started)
        state.curve.append({"step": state.step, "loss": loss, **measured})
        figures = " ".join(f"{k} {v:.4f}" for k, v in state.curve[-1].items() if k != "step")
        print(f"{stage.name} {state.step} {figures} {rate:.2f} steps/s", flush=True)
        reported, losses = time.monotonic(), []
        cost = reported - start

    def save() -> None:
        nonlocal saved
        if losses and not math.isfinite(float(losses[-1])):
            raise FloatingPointError(f"{stage.name} at step {state.step}: expected a finite loss, found {losses[-1]}")
        checkpoint.save(state)
        saved = time.monotonic()

    with _Asked() as asked:
        while budget.progress(state.step) < 1 and not asked.stop:
            losses.append(_step(stage, *next(loader), state.step, budget))
            state.step += 1
            now = time.monotonic()
            if now - saved >= save_every:
                save()
            if now - reported >= max(report_every, 20 * cost):  # on a busy processor a validation takes long
                report()
        if losses and not asked.stop:  # who asks to stop may not wait for a validation
            report()
        save()
    return state


def _step(stage: Stage, clips: torch.Tensor, prompts: list[str], step: int, budget: Budget) -> torch.Tensor:
    for optimizer in stage.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(step, stage.peak)
    loss = stage.loss(clips, prompts, step)
    stage.model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(stage.model.parameters(), 1.0)
    for optimizer in stage.optimizers:
        optimizer.step()
    decay = min(stage.decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(stage.average.parameters()), list(stage.model.parameters()), 1 - decay)
    return loss.detach()
