"""What keeps other versions working: private names of diffusers and accelerate, as `compat` holds those of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import COMPILED_CALL

# diffusers 0.42.1 and accelerate 1.14: hooks. Both replace a module's forward and keep the one before.


def diffusers_hooks(module: nn.Module) -> Mapping[str, Any]:
    """Name -> hook of diffusers' registry on one module."""
    found: Mapping[str, Any] = getattr(vars(module).get(HOOK_REGISTRY), "hooks", {})
    return found


HOOK_REGISTRY = "_diffusers_hook"
"""Attribute of a module that holds diffusers' registry of hooks."""


HOOK_NAMES = (HOOK_REGISTRY, "_hf_hook", "_old_forward")
"""Attributes of a module by which diffusers and accelerate know what they have put around its forward."""


def accelerate_hook(module: nn.Module) -> Any:
    """Accelerate's hook on one module, None for none."""
    return vars(module).get("_hf_hook")


def call_inside_hooks(module: nn.Module) -> tuple[Any, str]:
    """(object, attribute) that holds a module's call inside its hooks; its compiled call where it has none."""
    references = getattr(vars(module).get(HOOK_REGISTRY), "_fn_refs", None)
    if references:
        return references[0], "forward" if references[0].original_forward is None else "original_forward"
    if accelerate_hook(module) is not None:
        return module, "_old_forward"
    return module, COMPILED_CALL


def keeps_results(hook: Any) -> bool:
    """Whether a hook of diffusers remembers results; some share what another of them keeps."""
    return getattr(hook, "_is_stateful", False) or hasattr(hook, "state_manager")


# diffusers 0.42.1: AutoencoderKLWan.


def wan_frames(vae: Any) -> int:
    """Video frames that a latent frame after the first makes."""
    return int(2 ** sum(vae.temperal_downsample))  # as diffusers spells it


def wan_cache(vae: Any) -> Any:
    """An empty causal cache of the decoder, which is that of no other call."""
    vae.clear_cache()
    return vae._feat_map


def wan_decode_piece(vae: Any, hidden: torch.Tensor, cache: Any, **options: bool) -> Any:
    """Decode some latent frames after those before, by the decoder's causal cache.

    Args:
        vae: an AutoencoderKLWan.
        hidden: (batch, channels, latent frames, height, width), after `post_quant_conv`.
        cache: of `wan_cache`, changed in place.
        **options: `first_chunk=True` for the first latent frame.

    Returns:
        (batch, channels, frames, height, width), in patches where the VAE makes patches.
    """
    return vae.decoder(hidden, feat_cache=cache, feat_idx=[0], **options)


# diffusers 0.42.1: parallelism. Hooks share out the tokens; attention processors may exchange them.

PARALLEL = "_parallel_config"
"""Attribute of an attention processor (and of a model) that says by which ranks it exchanges tokens."""
SHARING_PLAN = "_cp_plan"
"""Attribute of a model that says how its tokens are shared out; None or absent where its class does not know."""


def sharding_hooks(module: nn.Module) -> list[Any]:
    """Hooks on a module that share out its tokens over ranks or gather them: `metadata` says which of them."""
    return [hook for hook in diffusers_hooks(module).values() if hasattr(hook, "parallel_config")]


def token_group(config: Any) -> tuple[str, int, int]:
    """Name of the process group over which a ContextParallelConfig shares out tokens, its size, and this rank in it."""
    group = config._flattened_mesh.get_group()
    return str(group.group_name), torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
