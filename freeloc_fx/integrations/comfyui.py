"""A node for ComfyUI: MODEL in, MODEL out, the diffusion model inside transformed while it is sampled.

To install it, `pip install freeloc_fx` into ComfyUI's environment and put this into a file of `custom_nodes`:

    from freeloc_fx.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

The node stands last before the sampler. The model that comes in stays as it is; weights, LoRA patches and offloading
are ComfyUI's own, since the transformed model shares its modules. FreeLOC compiles what it rewrites, so a
TorchCompileModel node before this one is taken out, and one behind it, which would run the untransformed model, is an
error.

Tested on stand-ins of what it uses of ComfyUI (`ModelPatcher.clone`, `get_model_object`, `add_wrapper_with_key`,
`WrapperExecutor.class_obj`). How it was tried inside the real thing, on a CPU: bench/README.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from freeloc_fx.attention.running import denoising_step
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.compiler.transform import restore, transform
from freeloc_fx.errors import ProfileError, TransformError
from freeloc_fx.planning.profile import Profile

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "FreeLOC"]

log = logging.getLogger(__name__)

KEY = "freeloc_fx"
"""Under which this node's wrapper is kept in a model."""
COMPILE_KEY = "torch.compile"
"""Under which ComfyUI keeps the wrapper of its own compile nodes."""
MODEL = "diffusion_model"
AUTO, BY_HAND = "by the model", "by hand"


class FreeLOC:
    """The node."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    CATEGORY = "model_patches/video"
    DESCRIPTION = "Long video from a model trained on short clips, without training (FreeLOC)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """What the node shows: a model, a profile, and what replaces parts of it."""
        longest = {"default": 0, "min": 0, "max": 4096, "tooltip": "latent frames of the training clips; 0: profile's"}
        return {
            "required": {
                "model": ("MODEL",),
                "profile": ([AUTO, BY_HAND, *Profile.names()], {"default": AUTO}),
                "strategy": ("STRING", {"default": "", "tooltip": "for every layer, e.g. vrpr+tsa; empty: profile's"}),
                "trained_frames": ("INT", longest),
                "backend": (["inductor", "eager"], {"default": "inductor"}),
            }
        }

    def apply(self, model: Any, profile: str, strategy: str, trained_frames: int, backend: str) -> tuple[Any]:
        """Make a model whose diffusion model is transformed while it is sampled.

        Args:
            model: ComfyUI's ModelPatcher; not changed.
            profile: "by the model", "by hand", a shipped profile's name or a path.
            strategy: one strategy for all layers in place of the profile's; empty for the profile's.
            trained_frames: latent frames of the training clips in place of the profile's; 0 for the profile's.
            backend: of torch.compile, or "eager".

        Returns:
            The new ModelPatcher, alone in a tuple.

        Raises:
            ProfileError: no profile fits, or one by hand lacks its strategy or trained frames.
            TransformError: as `freeloc_fx.transform`.
        """
        from comfy.patcher_extension import WrappersMP

        result = model.clone()
        plain: nn.Module = result.get_model_object(MODEL)
        if state_of(plain) is not None:
            plain = restore(plain)
        changed = transform(plain, _profile(plain, profile, strategy, trained_frames), backend=backend)
        if result.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
            log.info("the torch.compile node before FreeLOC is taken out: FreeLOC compiles what it rewrites")
        for key in (KEY, COMPILE_KEY):  # a second node of this kind takes the first one's place
            result.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, key)
        result.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _wrapper(changed))
        return (result,)


def _profile(model: nn.Module, name: str, strategy: str, trained_frames: int) -> Profile:
    if name == BY_HAND:
        if not strategy.strip() or not trained_frames:
            raise ProfileError(
                f"profile {BY_HAND!r}: expected a strategy and trained_frames, found {strategy!r} and {trained_frames}"
            )
        return Profile(trained_frames=trained_frames, layers=strategy.strip())
    made = Profile.for_model(model) if name == AUTO else Profile.load(name)
    if strategy.strip():
        made = made.with_layers(strategy.strip())
    return replace(made, trained_frames=trained_frames) if trained_frames else made


def _wrapper(changed: nn.Module) -> Callable[..., Any]:
    """What ComfyUI calls around each evaluation of its model."""

    def run(executor: Any, *args: Any, **kwargs: Any) -> Any:
        holder = executor.class_obj
        before = getattr(holder, MODEL)
        state = state_of(changed)
        assert state is not None
        calls = state.calls
        setattr(holder, MODEL, changed)
        try:
            with _step(args, kwargs):
                result = executor(*args, **kwargs)
        finally:
            setattr(holder, MODEL, before)
        if state.calls == calls:
            raise TransformError(
                f"FreeLOC: this {type(changed).__name__} was transformed and not called; expected no node behind "
                "FreeLOC that puts a diffusion model of its own in place, as TorchCompileModel does: put it before"
            )
        return result

    return run


def _step(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[None]:
    """The denoising step that ComfyUI says it is at: the place of its sigma among those of the sampler."""
    options = kwargs.get("transformer_options")
    if options is None:
        options = next((each for each in args if isinstance(each, dict) and "sample_sigmas" in each), {})
    every, current = options.get("sample_sigmas"), options.get("sigmas")
    if not isinstance(every, torch.Tensor) or not isinstance(current, torch.Tensor) or not every.numel():
        return nullcontext()
    return denoising_step(int((every.flatten().cpu() - current.flatten()[0].cpu()).abs().argmin()))


NODE_CLASS_MAPPINGS = {"FreeLOC": FreeLOC}
NODE_DISPLAY_NAME_MAPPINGS = {"FreeLOC": "FreeLOC (long video)"}
