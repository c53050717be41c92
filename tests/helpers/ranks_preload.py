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
