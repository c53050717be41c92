"""The one way through: an explicit ordered list of passes, each linted, verified, timed and (on request) dumped.

Set FREELOC_DUMP to a folder to get the graph before the first and after each pass, numbered, as text.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from .errors import VerificationError
from .match import UNKNOWN, shape_of
from .meta import AttentionSite, record, sites
from .plan import Plan, make_plan
from .profile import Profile

__all__ = ["PassContext", "analyse", "flatten", "observe", "rewrite", "verify_graph"]

log = logging.getLogger("freeloc_fx")


@dataclass
class PassContext:
    """What passes may read beside the graph.

    inputs: the value of each placeholder of the capture. layers: module path prefix ("blocks.3") -> layer index.
    device: where the attention runs. prefix: path of the module that was captured, where it is not the whole model.
    size: latent frames, height and width that the model was asked for, where integers among its arguments say. shapes:
    of the five-dimensional tensors among its arguments. tables: position tables
    that one site computed and others use again.
    """

    profile: Profile
    inputs: Mapping[fx.Node, Any]
    layers: Mapping[str, int]
    attention: str = "auto"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    verify: bool = False
    plan: Plan | None = None
    recorder: str | None = None
    prefix: str = ""
    size: tuple[int, int, int] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    tables: dict[object, dict[fx.Node, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def layer_of(self, path: str, ordinal: int) -> int:
        """Layer index of a module path; where the path is in no known list of blocks, the site's place in the graph."""
        names = path.split(".")
        for length in range(len(names), 0, -1):
            layer = self.layers.get(".".join(names[:length]))
            if layer is not None:
                return layer
        return ordinal


Pass = Callable[[fx.Graph, PassContext], int]


def analysis_passes() -> list[Pass]:
    """Passes that only write records, in order."""
    from .passes.annotate_sensitivity import annotate_sensitivity
    from .passes.find_attention import find_attention
    from .passes.find_key_mask import find_key_mask
    from .passes.infer_rope import infer_rope
    from .passes.infer_token_grid import infer_token_grid

    return [find_attention, find_key_mask, infer_rope, infer_token_grid, annotate_sensitivity]


def rewrite_passes() -> list[Pass]:
    """Passes that act on the plan's sites, in order."""
    from .passes.rewrite_attention import rewrite_attention

    return [rewrite_attention]


def companion_passes() -> list[Pass]:
    """Passes that make cheaper what stands beside a rewritten site, in order."""
    from .passes.merge_repeated_keys import merge_repeated_keys

    return [merge_repeated_keys]


def flatten(graph: fx.Graph, root: torch.nn.Module, blocks: Collection[str]) -> int:
    """Make a capture with regions that were traced once one flat graph; returns how many there were."""
    from .passes.inline_regions import inline_regions

    return inline_regions(graph, root, blocks)


def analyse(graph: fx.Graph, context: PassContext) -> Plan:
    """Run the analysis passes and decide: returns the plan (also on the context).

    Raises:
        CaptureError: the graph is the whole model and holds no attention that can be planned.
    """
    _dump(graph, "capture")
    _run(graph, analysis_passes(), context)
    context.plan = make_plan([site for _, site in sites(graph)], context.profile, partial=bool(context.prefix))
    log.info("%s", context.plan)
    return context.plan


def rewrite(graph: fx.Graph, context: PassContext) -> int:
    """Run the rewriting passes; returns the number of sites replaced.

    Raises:
        VerificationError: fewer sites were replaced than the plan names.
    """
    assert context.plan is not None
    count = _run(graph, rewrite_passes(), context)
    if count != context.plan.rewritten:
        raise VerificationError(f"rewrite: expected {context.plan.rewritten} sites replaced, found {count}")
    _run(graph, companion_passes(), context)
    return count


def observe(graph: fx.Graph, context: PassContext) -> int:
    """Watch every video site instead of rewriting it; returns the number of sites."""
    from .passes.observe_attention import observe_attention

    return _run(graph, [observe_attention], context)


def _run(graph: fx.Graph, passes: Iterable[Pass], context: PassContext) -> int:
    total = 0
    for run in passes:
        before = Counter(str(n.target) for n in graph.nodes)
        started = time.perf_counter()
        matched = run(graph, context)
        context.seconds[run.__name__] = time.perf_counter() - started
        verify_graph(graph, run.__name__, context.verify)
        after = Counter(str(n.target) for n in graph.nodes)
        delta = {k: after[k] - before[k] for k in after.keys() | before.keys() if after[k] != before[k]}
        log.info("%s: %d matched, %.3f s, operations %s", run.__name__, matched, context.seconds[run.__name__], delta)
        _dump(graph, run.__name__)
        total += matched
    return total


def verify_graph(graph: fx.Graph, after: str, thorough: bool = False) -> None:
    """Lint, consistent records; with `thorough` shapes and dtypes are propagated again from the placeholders.

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
    if thorough:
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
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    recorded = {
        n: value for n in graph.nodes if isinstance(value := n.meta.get("example_value"), torch.Tensor)
    }  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), torch.no_grad():
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                example = node.meta.get("example_value")
                values[node] = (
                    torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device=example.device)
                    if isinstance(example, torch.Tensor)
                    else example
                )
                continue
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


_dumped = 0


def _dump(graph: fx.Graph, name: str) -> None:
    """Write the graph to $FREELOC_DUMP/NNN_name.txt, if that is set."""
    global _dumped
    folder = os.environ.get("FREELOC_DUMP")
    if not folder:
        return
    lines = []
    for node in graph.nodes:
        site = record(node)
        lines.append(node.format_node() + (f"  # {site}" if site else "") if node.op != "output" else str(node.args))
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{_dumped:03d}_{name}.txt").write_text("\n".join(map(str, lines)) + "\n")
    _dumped += 1
