"""What the server of `ranks` imports once for all ranks that it forks."""

import diffusers
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor.parallel

import freeloc_fx

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
)

# What a first capture imports, imported; on one thread, so that there are none to be lost in a fork.
torch.set_num_threads(1)
torch.compile(torch.nn.Linear(1, 1), backend="eager")(torch.ones(1, 1))
