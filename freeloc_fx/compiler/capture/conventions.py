"""What a model's forward is called with: sizes, and the limits that the model itself sets on them.

Argument and configuration names are diffusers' conventions; no model class is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from freeloc_fx.errors import CaptureError, LengthError, TimelineError
from freeloc_fx.method.checks import is_whole

__all__ = [
    "as_clips",
    "call_arguments",
    "check_limits",
    "check_one_clip",
    "check_text_tokens",
    "forward_signature",
    "integer_size",
    "keeps_text_in_step",
    "latent_size",
    "layer_table",
]


def layer_table(model: nn.Module) -> dict[str, int]:
    """Module path of each transformer block -> layer index, over the model's lists of blocks in order.

    A list of blocks is a ModuleList directly on the model whose elements contain an attention module. A model without
    one may wrap a transformer: the lists are those of the module inside that is most like one, see `_wrapped`.

    Args:
        model: a transformer, or what wraps it.
    """
    paths = _block_paths(model)
    if not paths and (wrapped := _wrapped(model)) is not None:
        paths = wrapped[1]
    return {path: layer for layer, path in enumerate(paths)}


def _wrapped(model: nn.Module) -> tuple[nn.Module, list[str]] | None:
    """The transformer inside a model that has no list of blocks itself, and the paths of its blocks; None for none.

    Of several modules with lists of blocks it is the one that has a configuration as diffusers' models do, then the one
    of most blocks, then the one that lies nearest. Lists may be Sequentials there.
    """
    level, seen, found = [("", model)], {id(model)}, []
    while level:
        below = []
        for prefix, module in level:
            lists = _block_paths(module)
            paths = lists or _block_paths(module, nn.Sequential)
            if paths:
                found.append((module, [prefix + path for path in paths]))
            for name, child in () if lists else module.named_children():
                if id(child) not in seen and not any(path.startswith(f"{name}.") for path in paths):
                    seen.add(id(child))
                    below.append((f"{prefix}{name}.", child))
        level = below
    return min(
        found,
        key=lambda each: (not isinstance(getattr(each[0], "config", None), Mapping), -len(each[1])),
        default=None,
    )


def _block_paths(module: nn.Module, kind: type[nn.Module] = nn.ModuleList) -> list[str]:
    """Paths of the blocks in the lists directly on a module; a Sequential of whole nets is no list of blocks."""
    paths = []
    for name, child in module.named_children():
        blocks = dict(child.named_children()) if isinstance(child, kind) else {}
        hold = [any("attn" in n or "attention" in n for n, _ in block.named_modules()) for block in blocks.values()]
        nets = kind is nn.Sequential and any(_wrapped(block) is not None for block in blocks.values())
        if hold and all(hold) and not nets:
            paths += [f"{name}.{index}" for index in blocks]
    return paths


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """The configuration of a model, or of the transformer which it wraps; empty where neither has one."""
    return next((c for m in _with_wrapped(model) if isinstance(c := getattr(m, "config", None), Mapping)), {})


def _with_wrapped(model: nn.Module) -> list[nn.Module]:
    """The transformer that a model wraps, if it does, and the model."""
    wrapped = None if _block_paths(model) else _wrapped(model)
    return [model] if wrapped is None else [wrapped[0], model]


def patches(model: nn.Module) -> tuple[int, int, int]:
    """Patch size (frames, height, width) in latent units, 1 where neither configuration nor embedding says."""
    return known_patches(model) or (1, 1, 1)


def keeps_text_in_step(model: nn.Module) -> bool:
    """Whether text tokens go through a model's blocks beside the video's, as queries with a projection of their own.

    Such models take the first tokens of a padded text for those that there are, as many as its mask counts.

    Args:
        model: a transformer.
    """
    takes_mask = "encoder_attention_mask" in forward_signature(model).parameters
    return takes_mask and any(getattr(module, "add_q_proj", None) is not None for module in model.modules())


def check_text_tokens(model: nn.Module, tokens: int) -> None:
    """Refuse more text than a model's own position tables have places for.

    Args:
        model: whose tables they are.
        tokens: of all texts of a call.

    Raises:
        TimelineError: names the table.
    """
    for path, module in model.named_modules():
        own = vars(module)
        if path and (own.get("use_positional_embeddings") or own.get("use_learned_positional_embeddings")):
            raise TimelineError(
                f"timeline: {type(model).__name__}: {path} adds positions to one sequence of video and text, whose "
                "text has a fixed length; expected a model with rotary positions alone"
            )
        rows = getattr(module, "max_pos", None)
        if is_whole(rows) and rows < tokens:
            raise TimelineError(
                f"timeline: {type(model).__name__}: the texts have {tokens} tokens, and {path} has {rows} positions; "
                "expected fewer texts, or a smaller max_sequence_length"
            )


def known_patches(model: nn.Module) -> tuple[int, int, int] | None:
    """Patch size (frames, height, width) in latent units: as the configuration has it, else that of the one convolution
    which cuts a clip into patches; None where there is neither."""
    config = config_of(model)
    size = config.get("patch_size") or config.get("latent_patch_size")
    if size is None:
        cuts = {each.stride for each in model.modules() if isinstance(each, nn.Conv3d) and _cuts(each)}
        only = cuts.pop() if len(cuts) == 1 else None
        return None if only is None else (int(only[0]), int(only[1]), int(only[2]))
    if isinstance(size, (list, tuple)) and len(size) == 3:
        return int(size[0]), int(size[1]), int(size[2])
    space = int(size[-1]) if isinstance(size, (list, tuple)) else int(size or 1)
    return int(config.get("patch_size_t") or 1), space, space


def _cuts(embedding: nn.Conv3d) -> bool:
    return embedding.kernel_size == embedding.stride and not any(map(bool, embedding.padding))


def frame_axis(model: nn.Module) -> int:
    """The axis of a five-dimensional `hidden_states` that counts frames; the two after it (but for channels) are height
    and width.

    1 where the pipeline makes the rotary tables with the frames first (configurations with
    `use_rotary_positional_embeddings`), channels come last (`in_visual_dim`) or the forward takes a flow map's
    `r_timestep`, one a frame; else 2.
    """
    config = config_of(model)
    first = "use_rotary_positional_embeddings" in config or "in_visual_dim" in config
    return 1 if first or any("r_timestep" in forward_signature(m).parameters for m in _with_wrapped(model)) else 2


def call_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Forward's arguments by name; without the positional ones where the signature does not tell.

    Args:
        model: that is called.
        args: the positional arguments of the call.
        kwargs: the named arguments of the call.
    """
    try:
        signature = forward_signature(model)
        bound = signature.bind_partial(*args, **kwargs)
    except ValueError:
        return dict(kwargs)
    except TypeError:  # a name that only what wraps the model takes
        known = {name: value for name, value in kwargs.items() if name in signature.parameters}
        try:
            return dict(kwargs) | signature.bind_partial(*args, **known).arguments
        except TypeError:
            return dict(kwargs)
    found = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def forward_signature(model: nn.Module) -> inspect.Signature:
    """What a model's forward takes; that of its class where somebody has put `*args` in front of it, and that of the
    transformer which it wraps where the class hands on whatever comes.

    Args:
        model: whose forward it is.
    """
    own = inspect.signature(model.forward)
    if not any(p.kind is p.VAR_POSITIONAL for p in own.parameters.values()) and not _takes_anything(own):
        return own
    of_class = inspect.signature(type(model).forward)
    of_class = of_class.replace(parameters=list(of_class.parameters.values())[1:])
    if _takes_anything(of_class):
        inside = _with_wrapped(model)[0]
        return of_class if inside is model else forward_signature(inside)
    return of_class


def _takes_anything(signature: inspect.Signature) -> bool:
    """Whether a signature has no name of its own: `*args`, `**kwargs` or both."""
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return bool(kinds) and kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def integer_size(arguments: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Latent frames, height and width where a model takes its tokens flat and these as integers beside them."""
    found = [arguments.get(name) for name in ("num_frames", "height", "width")]
    if not all(is_whole(n) for n in found):
        return None
    frames, height, width = (int(n) for n in found if n is not None)
    return frames, height, width


def as_clips(value: Any) -> torch.Tensor | None:
    """An argument as a batch of clips, which some models take as a list of clips, with the batch's axis or without;
    None where it is neither. Of a list the first clip stands for all.

    Args:
        value: any argument of a forward.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(c, torch.Tensor) for c in value):
        value = value[0][None] if value[0].ndim == 4 else value[0]
    return value if isinstance(value, torch.Tensor) and value.ndim == 5 else None


def latent_size(arguments: Mapping[str, Any], model: nn.Module | None = None) -> tuple[int, int, int] | None:
    """Frames, height and width of the latents among forward's arguments, if they say.

    Args:
        arguments: forward's, by name.
        model: whose latents they are, which says where they count frames; None for the usual place.

    Returns:
        (latent frames, latent height, latent width), or None.
    """
    value = arguments.get("hidden_states")
    if value is None:  # another name: the one tensor that can be latents
        found = [clip for each in arguments.values() if (clip := as_clips(each)) is not None]
        value = found[0] if len(found) == 1 else None
    if not isinstance(value, torch.Tensor) or value.ndim != 5:
        return integer_size(arguments)
    if model is None or frame_axis(model) == 2:
        return int(value.shape[2]), int(value.shape[3]), int(value.shape[4])
    last = 2 if "in_visual_dim" in config_of(model) else 3
    return int(value.shape[1]), int(value.shape[last]), int(value.shape[last + 1])


def _limits(model: nn.Module) -> Iterator[tuple[str, int, int, str]]:
    """(name of the limit, axis, positions, what to change), as configuration or tables of the model say."""
    config = config_of(model)
    if config.get("rope_max_seq_len") is not None:
        for axis in range(3):
            name = "rope_max_seq_len"
            yield name, axis, int(config[name]), "load the model with a larger rope_max_seq_len"
    if isinstance(config.get("max_size"), (list, tuple)):  # one table of positions serves all axes
        longest = max(int(n) // p for n, p in zip(config["max_size"], patches(model), strict=True))
        for axis in range(3):
            yield "max_size", axis, longest, "load the model with a larger max_size"
    for path, module in model.named_modules():
        rows = getattr(module, "max_pos", None)
        if isinstance(rows, (list, tuple)) and len(rows) == 3:
            for axis in range(3):
                yield f"{path}.max_pos", axis, int(rows[axis]), f"give {path} position tables of more rows"


def check_limits(model: nn.Module, frames: int, height: int, width: int) -> None:
    """Refuse a latent size that the model's own position tables cannot hold.

    Args:
        model: whose tables they are.
        frames: latent frames of the model's input.
        height: latent height of the model's input.
        width: latent width of the model's input.

    Raises:
        LengthError: names the limit, what was asked for, and what to change.
    """
    sizes, names, per_token = (frames, height, width), ("frames", "height", "width"), patches(model)
    for limit, axis, positions, change in _limits(model):
        needed = sizes[axis] // per_token[axis]
        if needed > positions:
            raise LengthError(
                f"{sizes[axis]} latent {names[axis]} need {needed} positions, the model's {limit} is {positions}; "
                f"ask for fewer {names[axis]} or {change}"
            )


_WINDOWED = ("history", "kv_cache")


def check_one_clip(model: nn.Module) -> None:
    """Refuse a model that makes long video piece by piece, by its forward's arguments for what came before.

    Raises:
        CaptureError: names the arguments.
    """
    found = [n for n in forward_signature(model).parameters if any(word in n for word in _WINDOWED)]
    if found:
        raise CaptureError(
            f"{type(model).__name__}.forward takes {', '.join(found)}: "
            + (
                "it is autoregressive and makes video of any length piece by piece from its own history"
                if any("history" in name for name in found)
                else "it is autoregressive, or reads a reference's keys, from what earlier calls kept"
            )
            + "; expected a model that makes a whole clip at once"
        )
