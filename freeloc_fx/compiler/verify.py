"""Checks of a graph after each pass."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from freeloc_fx.compat import fake_mode, is_region_call
from freeloc_fx.errors import VerificationError
from freeloc_fx.graph.records import AttentionSite, record
from freeloc_fx.graph.shapes import UNKNOWN, shape_of, value_of

__all__ = ["verify_graph"]


def verify_graph(graph: fx.Graph, after: str, thorough: bool = False) -> None:
    """Lint, consistent records; with `thorough` shapes and dtypes are propagated again from the placeholders.

    Args:
        graph: as a pass has left it.
        after: name of that pass, for the message.
        thorough: also propagate shapes and dtypes again, and compare them with those of the capture.

    Raises:
        VerificationError: names the pass, the site or node, what was expected and what was found.
    """
    try:
        graph.lint()
    except RuntimeError as error:
        raise VerificationError(f"after {after}: the graph is not well formed: {error}") from error
    for node in graph.nodes:
        site = record(node)
        if site is not None:
            _check_record(node, site, after)
    if thorough and not any(map(is_region_call, graph.nodes)):  # their graphs are not part of this one yet
        _propagate(graph, after)


def _check_record(node: fx.Node, site: AttentionSite, after: str) -> None:
    shape = shape_of(node)
    if shape is not None and any(n not in (m, UNKNOWN) for n, m in zip(shape[:3], site.query_shape[:3], strict=False)):
        raise VerificationError(f"after {after}: site {site.path}: expected {site.query_shape}, found {shape}")
    if site.kind != "video" and not site.reason:
        raise VerificationError(
            f"after {after}: site {site.path}: expected a reason for kind {site.kind!r}, found none"
        )
    if site.rope is not None and site.rope.head_dim != site.query_shape[3]:
        raise VerificationError(
            f"after {after}: site {site.path}: expected RoPE over {site.query_shape[3]} channels, "
            f"found {site.rope.head_dim}"
        )


def _propagate(graph: fx.Graph, after: str) -> None:
    """Run the graph on fake tensors and compare every node with what Dynamo recorded at capture."""
    recorded = {
        n: value for n in graph.nodes if isinstance(value := value_of(n), torch.Tensor)
    }  # fmt: skip
    with fake_mode(), torch.no_grad():
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                example = value_of(node)
                values[node] = (
                    torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device=example.device)
                    if isinstance(example, torch.Tensor)
                    else example
                )
                continue
            if node.op == "get_attr" and graph.owning_module is not None:
                values[node] = operator.attrgetter(str(node.target))(graph.owning_module)
            if node.op not in ("call_function", "call_method"):
                continue
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            value = (
                node.target(*args, **kwargs)  # type: ignore[operator]
                if node.op == "call_function"
                else getattr(args[0], str(node.target))(*args[1:], **kwargs)
            )
            values[node] = value
            expected = recorded.get(node)
            if (
                expected is not None
                and isinstance(value, torch.Tensor)
                and UNKNOWN not in (shape_of(node) or ())
                and (tuple(expected.shape) != tuple(value.shape) or expected.dtype != value.dtype)
            ):
                raise VerificationError(
                    f"after {after}: node {node.name}: expected {tuple(expected.shape)} {expected.dtype}, "
                    f"found {tuple(value.shape)} {value.dtype}"
                )
