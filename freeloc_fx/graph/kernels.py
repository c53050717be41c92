"""What a call of somebody's attention kernel computes, told by the call's signature: its arguments' names and values.

    flash_attn._flash_attn_forward(q, k, v, 0.0, 0.25, causal=False, window_size_left=-1, ...)
    is softmax(0.25 q k) v with tokens before heads, the first of several results

A package's name decides nothing: an operator of any namespace whose arguments are called so, and have values that
switch their effect off, is dense attention; one argument that is not known here, or has an effect, and it is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F

from .calls import arguments
from .flex_calls import FLEX, dense_flex
from .operations import OPERATORS, VIEWS
from .shapes import value_of

__all__ = ["DIRECT", "KernelCall", "is_kernel", "kernel_call", "kernel_name"]


DIRECT = (F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
"""What this compiler calls an attention."""

Layout = str
"""How batch, heads, tokens and channels lie: "bhsd", "bshd", or "thd" for the tokens of all samples in a row."""


@dataclass(frozen=True)
class KernelCall:
    """An attention in terms of scaled_dot_product_attention.

    Args:
        query: as the call has it.
        key: as the call has it.
        value: as the call has it.
        layout: of the three, and of the result.
        scale: factor on q k; None for 1 / sqrt(head_dim).
        mask: of the keys, or of pairs, as scaled_dot_product_attention takes it; None for none.
        lengths: where each sample's queries, and keys, begin in layout "thd"; None elsewhere.
        first: the result is the first of several, of which no other is read.
        sink: a learned logit of each head that takes part in its softmax; None for none.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    layout: Layout = "bhsd"
    scale: float | None = None
    mask: fx.Node | None = None
    lengths: tuple[fx.Node, fx.Node] | None = None
    first: bool = False
    sink: fx.Node | None = None


_TENSORS = (("q", "query"), ("k", "key"), ("v", "value"))
_SCALE = ("softmax_scale", "sm_scale", "scale")
_LENGTHS = (("cu_seqlens_q", "cu_seqlen_q"), ("cu_seqlens_k", "cu_seqlens_kv", "cu_seqlen_k"))
_SINK = ("s_aux", "sinks", "learnable_sink")


def _no_window(given: Any) -> bool:
    sides = given if isinstance(given, (tuple, list)) else (given,)
    return all(side is None or (isinstance(side, int) and side < 0) for side in sides)


def _off(given: Any) -> bool:
    return given is None or (isinstance(given, (bool, int, float)) and not given)


_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("causal", "is_causal", "dropout_p", "p", "softcap", "logits_soft_cap", "attention_chunk"), _off),
    **dict.fromkeys(("window_size", "window_size_left", "window_size_right"), _no_window),
}
"""Arguments with an effect on the result, and which values have none."""


_HOW = {
    "return_softmax", "return_attn_probs", "return_lse", "return_debug_mask", "compute_log_sumexp", "deterministic",
    "num_splits", "pack_gqa", "sm_margin", "zero_tensors", "max_seqlen_q", "max_seqlen_k", "max_q", "max_k",
    "max_seqlen_kv", "smooth_k", "smooth_v", "qk_quant_gran", "qk_quant_dtype", "pv_accum_dtype",
    "quantization_backend", "scheduler_metadata", "rotary_interleaved", "enable_gqa", "is_grad_enabled",
    "return_softmax_lse", "ver", "function", "min_seqlen_k", "seqlen_k_per_split", "disable_scheduler_metadata",
}  # fmt: skip
"""Arguments that choose how it is computed, or what is given beside it."""


def kernel_name(node: fx.Node) -> str:
    """What a node calls, in a word.

    Args:
        node: of a call.
    """
    return str(getattr(node.target, "__name__", node.target))


def is_kernel(node: fx.Node) -> bool:
    """Whether a node looks like an attention that is no scaled_dot_product_attention.

    Args:
        node: of any kind.
    """
    if node.op != "call_function" or node.target in DIRECT:
        return False
    name = kernel_name(node).lower()
    return any(word in name for word in ("attention", "attn", "sdpa")) and len(node.all_input_nodes) >= 3


def kernel_call(node: fx.Node, known: Callable[[fx.Node], Any]) -> KernelCall | str:
    """Read an attention call.

    Args:
        node: a call for which `is_kernel` holds, or of scaled_dot_product_attention.
        known: gives the value of a node that is the same in every call of the model; None where it is not.

    Returns:
        What it computes; or why that cannot be told, or is no dense attention.
    """
    if node.target in DIRECT:
        return _direct(node)
    if node.target is FLEX:
        why = dense_flex(node, known) or _others_read(node)
        query, key, value = node.args[:3]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
        scale = node.args[5]
        if not why and not isinstance(scale, (int, float)):
            why = "its scale is no constant"
        return why or KernelCall(query, key, value, scale=float(scale), first=True)  # type: ignore[arg-type]
    given = _bound(node)
    if given is None:
        return "its signature cannot be read"
    return _read(node, given)


def _direct(node: fx.Node) -> KernelCall | str:
    given = arguments(node)
    if given.get("is_causal") or given.get("dropout_p"):
        return "it is causal, or drops out"
    scale = given.get("scale")
    if scale is not None and not isinstance(scale, (int, float)):
        return "its scale is no constant"
    factor = None if scale is None else float(scale)
    return KernelCall(given["query"], given["key"], given["value"], scale=factor, mask=given.get("attn_mask"))


def _bound(node: fx.Node) -> dict[str, Any] | None:
    """Arguments by name, defaults among them."""
    target: Any = node.target
    if isinstance(target, OPERATORS):
        overload: Any = target if hasattr(target, "_schema") else getattr(target, "default", None)
        if overload is None:
            return None
        names = [one.name for one in overload._schema.arguments]
        given = {one.name: one.default_value for one in overload._schema.arguments if one.has_default_value()}
        return given | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL and named.pop(parameter.name):
            return None
    return named


def _take(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The argument that has one of some names, taken out; None where there is none."""
    return next((given.pop(name) for name in names if name in given), None)


def _read(node: fx.Node, given: dict[str, Any]) -> KernelCall | str:
    given = dict(given)
    query, key, value = (_take(given, names) for names in _TENSORS)
    if not (isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)):
        return "it takes no q, k and v by those names"
    scale = _take(given, _SCALE)
    if scale is not None and not isinstance(scale, (int, float)):
        return "its scale is no constant"
    starts = tuple(_take(given, names) for names in _LENGTHS)
    sink = _take(given, _SINK)
    layout = _layout(node, given.pop("tensor_layout", None), query, starts)
    if layout is None:
        return "how its heads and tokens lie cannot be told from its name or arguments"
    for name, setting in given.items():
        neutral = _NEUTRAL.get(name)
        if not (name in _HOW or setting is None or (neutral is not None and neutral(setting))):
            return f"its {name} is {setting}"
    several = isinstance(value_of(node), (tuple, list))
    if several and (why := _others_read(node)):
        return why
    lengths = (starts[0], starts[1]) if layout == "thd" else None
    factor = None if scale is None else float(scale)
    return KernelCall(query, key, value, layout, factor, lengths=lengths, first=several, sink=sink)


def _layout(node: fx.Node, said: Any, query: Any, starts: tuple[Any, ...]) -> Layout | None:
    """The layout that an argument says, or that the family of kernels has."""
    axes = getattr(value_of(query), "ndim", None)
    if any(isinstance(one, fx.Node) for one in starts):
        return "thd" if axes == 3 and all(isinstance(one, fx.Node) for one in starts) else None
    if axes != 4:
        return None
    if said is not None:
        named: Mapping[Any, Layout] = {"HND": "bhsd", "NHD": "bshd"}
        return named.get(said)
    name = str(node.target).lower()
    if "scaled_dot_product" in name:
        return "bhsd"
    return "bshd" if "flash" in name or "memory_efficient" in name else None


def _others_read(node: fx.Node) -> str:
    """Why a call with several results is not just its first; empty where no other is read."""
    for user in node.users:
        first = kernel_name(user) == "getitem" and user.args[1] == 0
        if not first and _is_read(user):
            return "more than its first result is read (the log-sum-exp of a part of the keys)"
    return ""


def _is_read(node: fx.Node) -> bool:
    """Whether a result, or what only another shape was given to, goes anywhere."""
    return any(user.target not in VIEWS or _is_read(user) for user in node.users)
