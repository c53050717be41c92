"""The one way through: every pass, in order, with what each of them needs.

    capture -> analyse -> plan -> rewrite (or observe) -> cut into blocks -> compile

Set FREELOC_DUMP to a folder to get the graph before the first and after each pass, numbered, as text.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial

import torch

from freeloc_fx.attention.registry import Specs
from freeloc_fx.errors import VerificationError
from freeloc_fx.graph.capture import Pass
from freeloc_fx.graph.records import sites
from freeloc_fx.passes.annotate_sensitivity import annotate_sensitivity
from freeloc_fx.passes.cut_blocks import cut_blocks
from freeloc_fx.passes.find_attention import find_attention
from freeloc_fx.passes.find_key_mask import find_key_mask
from freeloc_fx.passes.infer_rope import infer_rope
from freeloc_fx.passes.infer_token_grid import infer_token_grid
from freeloc_fx.passes.inline_regions import inline_regions
from freeloc_fx.passes.merge_repeated_keys import merge_repeated_keys
from freeloc_fx.passes.name_modules import name_modules
from freeloc_fx.passes.observe_attention import observe_attention
from freeloc_fx.passes.rewrite_attention import rewrite_attention
from freeloc_fx.planning.plan import Plan, make_plan
from freeloc_fx.planning.profile import Profile

from .runner import Runner, name_of

__all__ = ["PASSES", "analyse", "check_names", "cut", "observe", "rewrite"]

log = logging.getLogger("freeloc_fx")

PASSES = (
    name_modules,
    inline_regions,
    find_attention,
    find_key_mask,
    infer_rope,
    infer_token_grid,
    annotate_sensitivity,
    rewrite_attention,
    merge_repeated_keys,
    observe_attention,
    cut_blocks,
)
"""Every pass, in the order in which they run; `observe_attention` in place of the two before it."""


def check_names(names: Collection[str]) -> frozenset[str]:
    """Names of passes, as a set.

    Args:
        names: of passes to switch off.

    Returns:
        The names.

    Raises:
        ValueError: no pass has one of them, or a string was given for a collection of them.
    """
    known = [name_of(one) for one in PASSES]
    given = [names] if isinstance(names, str) or not isinstance(names, Collection) else list(names)
    wrong = given if given == [names] else [name for name in given if name not in known]
    if wrong:
        raise ValueError(f"disable_passes: expected names out of {', '.join(known)}, found {wrong}")
    return frozenset(names)


def analysis_passes(root: torch.nn.Module, model: torch.nn.Module | None, profile: Profile) -> list[Pass]:
    """Passes that make the capture one flat graph and write records, in order."""
    return [
        partial(name_modules, root=root, model=model),
        partial(inline_regions, root=root, model=model),
        find_attention,
        find_key_mask,
        infer_rope,
        infer_token_grid,
        partial(annotate_sensitivity, sensitivities=profile.sensitivities or {}),
    ]


def rewriting_passes(plan: Plan, attention: str, verify: bool, specs: Specs) -> list[Pass]:
    """Passes that act on the plan's sites and on what stands beside them, in order."""
    return [
        partial(rewrite_attention, plan=plan, attention=attention, verify=verify, specs=specs),
        partial(merge_repeated_keys, plan=plan, attention=attention, verify=verify),
    ]


def observing_passes(plan: Plan, recorder: str) -> list[Pass]:
    """Passes that watch the plan's sites instead of rewriting them."""
    return [partial(observe_attention, plan=plan, recorder=recorder)]


def cutting_passes(blocks: Collection[str] | None) -> list[Pass]:
    """Passes that say which nodes are compiled together."""
    return [partial(cut_blocks, blocks=blocks)]


def analyse(runner: Runner, root: torch.nn.Module, model: torch.nn.Module | None, profile: Profile) -> Plan:
    """Run the analysis passes and decide.

    Args:
        runner: of the captured graph.
        root: holds the graphs of regions that Dynamo traced once.
        model: what was captured; None where that is not known, and then no region may be in the graph.
        profile: strategies and settings.

    Returns:
        The plan.

    Raises:
        CaptureError: the graph is the whole model and holds no attention that can be planned.
        VerificationError: a pass left the graph inconsistent.
    """
    # What the model computes under autocast is in its graph; tables that it keeps out of autocast are made here alone.
    with torch.autocast(runner.capture.device.type, enabled=False):
        runner.run(analysis_passes(root, model, profile))
    found = [site for _, site in sites(runner.graph)]
    capture = runner.capture
    plan = make_plan(found, profile, partial=bool(capture.prefix), layers=len(capture.layers))
    log.info("%s", plan)
    for note in plan.notes:
        log.warning("%s", note)
    return plan


def rewrite(runner: Runner, plan: Plan, *, attention: str, verify: bool, specs: Specs) -> int:
    """Run the rewriting passes.

    Args:
        runner: of the analysed graph.
        plan: what becomes of each site.
        attention: "auto" or a lowering's name.
        verify: long attentions compare themselves with the reference.
        specs: the backend's, which keep alive what the graph names.

    Returns:
        The number of sites replaced.

    Raises:
        VerificationError: fewer sites were replaced than the plan names.
    """
    first, *others = rewriting_passes(plan, attention, verify, specs)
    count = runner.run([first])
    if name_of(first) in runner.disabled:
        log.warning("%s is switched off: %d planned sites run as they are", name_of(first), plan.rewritten)
    elif count != plan.rewritten:
        raise VerificationError(f"rewrite: expected {plan.rewritten} sites replaced, found {count}")
    runner.run(others)
    return count


def observe(runner: Runner, plan: Plan, recorder: str) -> int:
    """Watch every planned site instead of rewriting it.

    Args:
        runner: of the analysed graph.
        plan: names the sites.
        recorder: name of an open recorder.

    Returns:
        The number of sites.
    """
    return runner.run(observing_passes(plan, recorder))


def cut(runner: Runner, blocks: Collection[str] | None) -> int:
    """Say which nodes are compiled together.

    Args:
        runner: of the rewritten graph.
        blocks: see `cut_blocks`.

    Returns:
        The number of pieces, 0 where the graph has to be compiled as one.
    """
    return runner.run(cutting_passes(blocks))
