"""Share a pipeline's work out over the ranks of torch.distributed: its tokens, its weights, or both.

share_tokens(pipe, latent=(81, 60, 104))  # Ulysses: each rank holds some tokens, and some heads in an attention
shard_weights(pipe)                       # FSDP2: each rank holds a part of every weight
apply(pipe, strategy="vrpr+tsa")          # then as on one process; every rank makes the same calls

A scheduler that adds noise in its steps must add the same on every rank: `running.generate` sees to that, and a call of
the pipeline's own needs the same `torch.manual_seed` before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from freeloc_fx.compat_diffusers import SHARING_PLAN
from freeloc_fx.compiler.capture.conventions import config_of, layer_table, patches
from freeloc_fx.compiler.capture.swapped import swapped
from freeloc_fx.errors import ModelError

from .components import transformers_of

__all__ = ["GLOO", "an_accelerator", "check_sharing_plan", "shard_weights", "share_tokens"]


GLOO = "cpu:gloo"
"""Backend of a process group without accelerators. As "gloo" it would be the same, but diffusers 0.42.1 looks for
"cpu" in the name before it gathers sizes, where ranks do not divide heads or tokens, and else asks for torch's
accelerator: that is CUDA in a torch that was built for it, on a machine without a device, too."""


@contextmanager
def an_accelerator() -> Iterator[None]:
    """Context: torch counts one accelerator where there is none.

    diffusers 0.42.1 numbers its device by `rank % torch.accelerator.device_count()`, a division by zero on a machine
    without one; the device that it makes of the answer there is the CPU.
    """
    if torch.accelerator.device_count():
        yield
        return
    with swapped(torch.accelerator, "device_count", lambda: 1):
        yield


def share_tokens(pipe: Any, latent: tuple[int, int, int]) -> None:
    """Let all ranks share the tokens of a pipeline's transformers, by diffusers' context parallelism (Ulysses).

    Args:
        pipe: a diffusers pipeline that is not enabled yet, the same on every rank.
        latent: frames, height and width of the latents, to choose how ranks share what they do not divide.

    Raises:
        ModelError: diffusers knows no way to share out the tokens of such a transformer.
    """
    from diffusers import ContextParallelConfig

    ranks = dist.get_world_size()
    for model in transformers_of(pipe).values():
        tokens = math.prod(n // patch for n, patch in zip(latent, patches(model), strict=True))
        heads = int(config_of(model).get("num_attention_heads") or ranks)
        anything = bool(tokens % ranks or heads % ranks)
        check_sharing_plan(model, ranks)
        try:
            with an_accelerator():
                model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks, ulysses_anything=anything))
        except (AttributeError, ValueError) as error:
            raise _unshared(model, ranks, error) from error


def check_sharing_plan(model: nn.Module, ranks: int) -> None:
    """Refuse a model whose class says nothing of how its tokens are shared out.

    Args:
        model: a transformer.
        ranks: that are to share.

    Raises:
        ModelError: its class says nothing.
    """
    if not getattr(model, SHARING_PLAN, None):
        raise _unshared(model, ranks, f"its class has no {SHARING_PLAN}")


def _unshared(model: nn.Module, ranks: int, why: object) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: diffusers cannot share out its tokens over {ranks} ranks ({why}); expected a model "
        "with a plan for that, such as Wan or LTX, or sharded weights instead"
    )


def shard_weights(pipe: Any) -> None:
    """Let all ranks share the weights of a pipeline's transformers by FSDP2, block by block.

    Args:
        pipe: a diffusers pipeline that is not enabled yet, the same on every rank.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for model in transformers_of(pipe).values():
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for path in layer_table(model):
            fully_shard(model.get_submodule(path), mesh=mesh)
        fully_shard(model, mesh=mesh)
