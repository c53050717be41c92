"""Which operations are layout changes, elementwise arithmetic, norms and projections."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F

from . import leaf
from .shapes import shape_of

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


def _may_turn(node: fx.Node) -> bool:
    """Whether a call is an operator of somebody's own that could be RoPE: it makes one tensor of another's shape and of
    a table. Whether it turns anything, and is linear, is measured."""
    target, shape = node.target, shape_of(node)
    if not isinstance(target, OPERATORS) or shape is None:
        return False
    if str(target).split(".")[0] in ("aten", "prims", "prim", "freeloc_fx"):
        return False
    first, *others = [shape_of(read) for read in node.all_input_nodes] or [None]
    return first == shape and any(other is not None and other != shape for other in others)
