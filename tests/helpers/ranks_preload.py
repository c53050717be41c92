"""What the server of `ranks` imports once for all ranks that it forks."""

import gc

import diffusers
import diffusers_models
import pytest
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
import typer.testing
from models import wan
from transformed import ALL, run

import freeloc_fx
import freeloc_fx.cli.app

# diffusers imports a class when it is first asked for.
__all__ = ["FORKED_WITH"]
FORKED_WITH = (
    diffusers.WanTransformer3DModel,
    diffusers.LTXVideoTransformer3DModel,
    diffusers.CogVideoXTransformer3DModel,
    diffusers.ContextParallelConfig,
    freeloc_fx.transform,
    torch._dynamo.config,
    torch.distributed.fsdp.fully_shard,
    torch.distributed.tensor.parallel.parallelize_module,
    diffusers_models.CASES,
    freeloc_fx.cli.app.app,
    pytest.mark,
    typer.testing.CliRunner,
)

# What a first capture imports, imported, and what a model's class is made of; on one thread, so that there are none to
# be lost in a fork.
torch.set_num_threads(1)
run(freeloc_fx.transform(wan(), ALL, backend="eager", attention="tiles"))
torch._dynamo.reset()
# Ranks need not look through all that for garbage, nor copy its pages as they would.
gc.set_threshold(50_000, 20, 10)
gc.collect()
gc.freeze()
