"""Which operations are layout changes, elementwise arithmetic, norms and projections."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F

from . import leaf
from .shapes import shape_of, value_of

__all__ = [
    "ACTIVATIONS",
    "LENDING",
    "MATRIX_PRODUCTS",
    "PRODUCTS",
    "SUMS",
    "SUMS_OF_PRODUCTS",
    "VIEWS",
    "is_linear",
    "lent_operand",
    "written_tensors",
]

VIEWS = {
    "unflatten", "flatten", "view", "reshape", "permute", "transpose", "unbind", "chunk", "split", "unsqueeze",
    "squeeze", "expand", "select", "movedim", "split_with_sizes", "view_as", "narrow", "swapaxes", "contiguous", "to",
    "float", "type_as", "type", operator.getitem, torch.unbind, torch.chunk, torch.split, torch.reshape, torch.flatten,
    torch.unflatten, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze, torch.view_as_complex,
    torch.view_as_real, torch.select, torch.movedim, torch.narrow,
}  # fmt: skip


# Layout changes and elementwise arithmetic: what RoPE is made of in every spelling. A node outside this set (a norm, a
# projection) ends the search, so a slice is linear in its sources.
METHODS = {
    "unflatten", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "unbind", "chunk", "split",
    "float", "to", "type_as", "type", "unsqueeze", "squeeze", "mul", "add", "sub", "neg", "expand", "clone",
    "new_empty", "select", "movedim", "double", "half", "bfloat16", "mul_", "add_", "sub_", "copy_", "split_with_sizes",
    "view_as", "expand_as", "reshape_as", "new_zeros", "sum", "repeat_interleave", "narrow", "div", "swapaxes", "roll",
    "index_select", "matmul", "addcmul", "addcmul_",
}  # fmt: skip


FUNCTIONS: set[Callable[..., Any]] = {
    operator.mul, operator.add, operator.sub, operator.neg, operator.getitem, operator.setitem, operator.imul,
    operator.iadd, operator.isub, torch.mul, torch.add, torch.sub, torch.neg, torch.cat, torch.concat, torch.stack,
    torch.empty_like, torch.zeros_like, torch.unbind, torch.chunk, torch.split, torch.reshape, torch.flatten,
    torch.unflatten, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze, torch.view_as_complex,
    torch.view_as_real, torch.select, torch.movedim, torch.clone, torch.sum, torch.narrow, torch.div, operator.truediv,
    torch.index_select, torch.matmul, operator.matmul, torch.einsum, torch.roll, torch.addcmul, torch.repeat_interleave,
}  # fmt: skip


PRODUCTS = {
    "mul", "mul_", "div", operator.mul, operator.imul, operator.truediv, torch.mul, torch.div,
}  # fmt: skip


SUMS_OF_PRODUCTS = {"addcmul", "addcmul_", torch.addcmul}


SUMS = {"add", "add_", "sub", "sub_", operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub}


MATRIX_PRODUCTS = {"matmul", torch.matmul, operator.matmul, torch.einsum}


LENDING = {"type_as", "view_as", "expand_as", "reshape_as"}


ACTIVATIONS: set[Any] = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, F.silu, F.gelu, F.relu,
    F.softmax, torch.softmax, F.layer_norm, torch.layer_norm, F.group_norm, F.rms_norm, torch.rms_norm, torch.addmm,
    F.scaled_dot_product_attention, leaf.OPERATOR,
}  # fmt: skip


OPERATORS = (type(torch.ops.aten.add), type(torch.ops.aten.add.Tensor))
"""What calls of registered operators have as their target: all overloads together, or one."""


def is_linear(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in METHODS
    return node.op == "call_function" and (node.target in FUNCTIONS or _may_turn(node))


def lent_operand(node: fx.Node) -> fx.Node | None:
    """The operand that lends its dtype, shape or device and no value: `other` of x.type_as(other) and x.to(other)."""
    if node.op != "call_method" or len(node.args) < 2 or not isinstance(node.args[1], fx.Node):
        return None
    lends = node.target in LENDING or (node.target == "to" and shape_of(node.args[1]) is not None)
    return node.args[1] if lends and node.args[1] is not node.args[0] else None


def written_tensors(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensors that a node writes in place: x[...] = y, x.add_(y), and operators whose schema says so of an
    argument that is one tensor.

    Args:
        node: of any kind.
    """
    if node.op == "call_function" and node.target is operator.setitem:
        return (node.args[0],) if isinstance(node.args[0], fx.Node) else ()
    if node.op == "call_method" and isinstance(node.target, str):
        inplace = node.target.endswith("_") and not node.target.endswith("__")
        return (node.args[0],) if inplace and isinstance(node.args[0], fx.Node) else ()
    if node.op != "call_function" or not isinstance(node.target, OPERATORS):
        return ()
    written = [one.name for one in _schema_arguments(node) if one.alias_info is not None and one.alias_info.is_write]
    given = _given_by_name(node)
    return tuple(one for name in written if isinstance(one := given.get(name), fx.Node))


def _schema_arguments(node: fx.Node) -> Sequence[Any]:
    """The arguments of an operator as its schema has them; none of a packet without a default overload."""
    target: Any = node.target
    overload = target if hasattr(target, "_schema") else getattr(target, "default", None)
    return () if overload is None else overload._schema.arguments


def _given_by_name(node: fx.Node) -> dict[str, Any]:
    """What is given to an operator, by the names in its schema."""
    return dict(zip((one.name for one in _schema_arguments(node)), node.args, strict=False)) | dict(node.kwargs)


def _may_turn(node: fx.Node) -> bool:
    """Whether a call is an operator of somebody's own that could be RoPE: of one tensor or several and of a table it
    makes as many of the same shapes, or writes those. Whether it turns anything, and is linear, is measured."""
    if not isinstance(node.target, OPERATORS):
        return False
    if str(node.target).split(".")[0] in ("aten", "prims", "prim", "freeloc_fx"):
        return False
    given: list[tuple[int, ...] | None] = [
        shape for one in _given_by_name(node).values() if isinstance(one, fx.Node) and (shape := shape_of(one))
    ]
    if written := written_tensors(node):
        made = [shape_of(one) for one in written]
        given = made + [shape for shape in given if shape not in made]
    else:
        value = value_of(node)
        several = value if isinstance(value, (tuple, list)) else (value,)
        made = [tuple(one.shape) if isinstance(one, torch.Tensor) else None for one in several]
    turned, others = given[: len(made)], given[len(made) :]
    return None not in made and turned == made and any(shape not in made for shape in others)
