"""The one way through: every pass, in order, with what each of them needs.

    capture -> analyse -> plan -> rewrite (or observe) -> cut into blocks -> compile

Ranks of context parallelism analyse and plan the unsharded view of the model, and adopt that on their own share.

What a rewrite puts in place of an attention depends on how it is to run: nodes of rotary and FlexAttention for "flex",
one operator for every other lowering.

Set FREELOC_DUMP to a folder to get the graph before the first and after each pass, numbered, as text.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from freeloc_fx.attention import op
from freeloc_fx.attention.flex.options import FlexOptions
from freeloc_fx.attention.registry import Specs
from freeloc_fx.errors import CaptureError, TimelineError, VerificationError
from freeloc_fx.graph.capture import Pass
from freeloc_fx.graph.records import sites, stand_in
from freeloc_fx.graph.sharding import Adopted
from freeloc_fx.graph.splice import CapturedFunctions
from freeloc_fx.method.timeline import TextForm
from freeloc_fx.passes.adopt_plan import adopt_plan
from freeloc_fx.passes.annotate_sensitivity import annotate_sensitivity
from freeloc_fx.passes.arrange_frames import arrange_frames
from freeloc_fx.passes.carry_sinks import carry_sinks, sinks_to_carry
from freeloc_fx.passes.cut_blocks import cut_blocks
from freeloc_fx.passes.find_attention import find_attention
from freeloc_fx.passes.find_key_mask import find_key_mask
from freeloc_fx.passes.infer_rope import infer_rope
from freeloc_fx.passes.infer_token_grid import infer_token_grid
from freeloc_fx.passes.inline_regions import inline_regions
from freeloc_fx.passes.merge_repeated_keys import merge_repeated_keys
from freeloc_fx.passes.name_modules import name_modules
from freeloc_fx.passes.observe_attention import observe_attention
from freeloc_fx.passes.pair_texts import pair_texts
from freeloc_fx.passes.reencode_rotary import reencode_rotary
from freeloc_fx.passes.restore_attention import restore_attention
from freeloc_fx.passes.rewrite_attention import rewrite_attention
from freeloc_fx.passes.schedule_text import schedule_text
from freeloc_fx.passes.shard_sequence import shard_sequence
from freeloc_fx.passes.split_text_from_image import split_text_from_image
from freeloc_fx.passes.tiered_sparse_attention import tiered_sparse_attention
from freeloc_fx.passes.unify_attention import unify_attention
from freeloc_fx.planning.plan import Plan, make_plan
from freeloc_fx.planning.profile import Profile

from .runner import Runner, name_of

__all__ = ["PASSES", "Rewriting", "adopt", "analyse", "check_names", "cut", "observe", "restore", "rewrite"]

log = logging.getLogger("freeloc_fx")

PASSES = (
    name_modules,
    inline_regions,
    split_text_from_image,
    unify_attention,
    find_attention,
    adopt_plan,
    shard_sequence,
    find_key_mask,
    infer_rope,
    arrange_frames,
    infer_token_grid,
    annotate_sensitivity,
    pair_texts,
    carry_sinks,
    reencode_rotary,
    tiered_sparse_attention,
    rewrite_attention,
    schedule_text,
    observe_attention,
    restore_attention,
    merge_repeated_keys,
    cut_blocks,
)
"""Every pass, in the order in which they run. `reencode_rotary` and `tiered_sparse_attention` run where attention is
"flex", `rewrite_attention` where it is not, `split_text_from_image`, `pair_texts` and `schedule_text` where a call has
texts over time, `carry_sinks` where a softmax counts learned logits, and `observe_attention` in place of all that
rewrites. `adopt_plan` and `shard_sequence` run on ranks of context parallelism, in place of the inference of RoPE and
grid."""


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
    wrong = given if given == [names] else sorted((name for name in given if name not in known), key=str)
    if wrong:
        raise ValueError(f"disable_passes: expected names out of {', '.join(known)}, found {wrong}")
    return frozenset(names)


def analysis_passes(
    root: torch.nn.Module, model: torch.nn.Module | None, profile: Profile, text: TextForm | None = None
) -> list[Pass]:
    """Passes that make the capture one flat graph and write records, in order."""
    return [
        partial(name_modules, root=root, model=model),
        partial(inline_regions, root=root, model=model),
        *([] if text is None else [partial(split_text_from_image, form=text)]),
        unify_attention,
        find_attention,
        find_key_mask,
        infer_rope,
        arrange_frames,
        infer_token_grid,
        partial(annotate_sensitivity, sensitivities=profile.sensitivities or {}),
    ]


def adopting_passes(root: torch.nn.Module, model: torch.nn.Module | None, adopted: Adopted) -> list[Pass]:
    """Passes that make a rank's capture one flat graph with the unsharded view's records, in order."""
    return [
        partial(name_modules, root=root, model=model),
        partial(inline_regions, root=root, model=model),
        unify_attention,
        find_attention,
        partial(adopt_plan, adopted=adopted),
        partial(shard_sequence, adopted=adopted),
        find_key_mask,
    ]


@dataclass
class Rewriting:
    """What the rewriting passes of one backend need beside the plan.

    Args:
        attention: "auto" or a lowering's name.
        verify: long attentions compare themselves with the reference.
        specs: what graphs name is added to them.
        options: choices about FlexAttention.
        functions: what was captured to be copied into graphs.
        text: the texts of calls with texts over time; None in calls with one text for all frames.
        fused: whether Inductor compiles what is rewritten, which alone makes a kernel of FlexAttention: by any other
            compiler, and by none, it holds the scores of all pairs of tokens.
    """

    attention: str = "auto"
    verify: bool = False
    specs: Specs = field(default_factory=Specs)
    options: FlexOptions = field(default_factory=FlexOptions)
    functions: CapturedFunctions = field(default_factory=CapturedFunctions)
    text: TextForm | None = None
    fused: bool = True

    @classmethod
    def read(cls, attention: str | Mapping[str, Any], verify: bool = False, fused: bool = True) -> Rewriting:
        """Read what `transform(attention=...)` was given.

        Args:
            attention: "auto" or a lowering's name, or a mapping of one of "auto" and "flex" to choices about
                FlexAttention, see `FlexOptions.read`.
            verify: see the class.
            fused: see the class.

        Raises:
            ValueError: it is neither, or a choice is unknown.
        """
        options = FlexOptions()
        if isinstance(attention, Mapping):
            if len(attention) != 1 or not set(attention) <= {"auto", "flex"}:
                raise ValueError(f"attention: expected a mapping of 'flex' (or 'auto') to choices, found {attention!r}")
            ((attention, given),) = attention.items()
            options = FlexOptions.read(given)
        op.choose(attention, torch.device("cpu"))
        return cls(attention, verify, options=options, fused=fused)

    def lowering(self, device: torch.device) -> str:
        """The lowering's name on a device, "auto" where it is told when it runs."""
        chosen = op.choose(self.attention, device)
        # "tiles" is calls there, and the reference for frames of several sizes, which calls do not take.
        return "tiles" if chosen == "flex" and self.attention == "auto" and not self.fused else chosen

    def anew(self) -> Rewriting:
        """The same with nothing named and nothing captured."""
        return replace(self, specs=Specs(), functions=CapturedFunctions())


def replacing_passes(plan: Plan, how: Rewriting, device: torch.device, root: torch.nn.Module) -> list[Pass]:
    """Passes that put strategies in place of the plan's attentions, in order; the last one matches the sites."""
    lowering = how.lowering(device)
    if lowering != "flex":
        if how.options != FlexOptions():
            log.warning("attention='auto' is not FlexAttention here, so what was chosen for that counts for nothing")
        return [partial(rewrite_attention, plan=plan, attention=lowering, verify=how.verify, specs=how.specs)]
    return [
        partial(reencode_rotary, plan=plan, options=how.options),
        partial(tiered_sparse_attention, root=root, functions=how.functions, verify=how.verify, specs=how.specs),
    ]


def passes_beside(plan: Plan, how: Rewriting) -> list[Pass]:
    """Passes that act on what stands beside the sites that were replaced."""
    return [partial(merge_repeated_keys, plan=plan, attention=how.attention, verify=how.verify)]


def pairing_passes(plan: Plan, how: Rewriting) -> list[Pass]:
    """Passes that say which pairs of video and text see each other; none in calls with one text for all."""
    return [] if how.text is None else [partial(pair_texts, form=how.text, plan=plan)]


def carrying_passes(runner: Runner, plan: Plan, observed: bool = False) -> list[Pass]:
    """Passes that let learned logits count in what is rewritten, or watched; none where there are none.

    Args:
        runner: of the analysed graph.
        plan: a strategy for each site.
        observed: whether the sites are watched.

    Raises:
        CaptureError: there are, and the pass is switched off.
    """
    found = sinks_to_carry(runner.graph, plan, observed)
    if found and name_of(carry_sinks) in runner.disabled:
        raise CaptureError(f"{found[0][1].path}: carry_sinks is switched off, so its learned logits would not count")
    return [partial(carry_sinks, plan=plan, observed=observed)] if found else []


def scheduling_passes(how: Rewriting, device: torch.device) -> list[Pass]:
    """Passes that let each frame see its own text; none in calls with one text for all."""
    if how.text is None:
        return []
    exact = how.lowering(device) == "reference"
    return [partial(schedule_text, form=how.text, exact=exact, verify=how.verify)]


def observing_passes(plan: Plan, recorder: str) -> list[Pass]:
    """Passes that watch the plan's sites instead of rewriting them."""
    return [partial(observe_attention, plan=plan, recorder=recorder)]


def cutting_passes(blocks: Collection[str] | None) -> list[Pass]:
    """Passes that say which nodes are compiled together."""
    return [partial(cut_blocks, blocks=blocks)]


def analyse(
    runner: Runner,
    root: torch.nn.Module,
    model: torch.nn.Module | None,
    profile: Profile,
    text: TextForm | None = None,
) -> Plan:
    """Run the analysis passes and decide.

    Args:
        runner: of the captured graph.
        root: holds the graphs of regions that Dynamo traced once.
        model: what was captured; None where that is not known, and then no region may be in the graph.
        profile: strategies and settings.
        text: the texts of a call with texts over time; None for one text for all frames.

    Returns:
        The plan.

    Raises:
        CaptureError: the graph is the whole model and holds no attention that can be planned.
        VerificationError: a pass left the graph inconsistent.
    """
    runner.run(analysis_passes(root, model, profile, text))
    found = [site for _, site in sites(runner.graph)]
    capture = runner.capture
    plan = make_plan(found, profile, partial=bool(capture.prefix), layers=len(capture.layers))
    log.info("%s", plan)
    for note in plan.notes:
        log.warning("%s", note)
    return plan


def adopt(runner: Runner, root: torch.nn.Module, model: torch.nn.Module | None, plan: Plan, adopted: Adopted) -> Plan:
    """Run the passes that put an unsharded plan onto a rank's own graph, and the exchange of tokens into it.

    Args:
        runner: of the captured graph.
        root: as of `analyse`.
        model: as of `analyse`.
        plan: of the whole model, unsharded.
        adopted: the unsharded view's sites.

    Returns:
        The plan of the sites that lie in this graph.

    Raises:
        CaptureError: the graph is not a share of what was planned.
        VerificationError: a pass left the graph inconsistent.
    """
    runner.run(adopting_passes(root, model, adopted))
    here = {site.path for _, site in sites(runner.graph) if site.kind == "video"}
    return replace(plan, sites=tuple(site for site in plan.sites if site.path in here))


def rewrite(runner: Runner, plan: Plan, how: Rewriting, root: torch.nn.Module) -> int:
    """Run the rewriting passes.

    Args:
        runner: of the analysed graph.
        plan: what becomes of each site.
        how: what the passes need beside the plan.
        root: holds what the graph names, and gets what is added.

    Returns:
        The number of sites replaced.

    Raises:
        CaptureError: learned logits would not count.
        TimelineError: the texts of a call with texts over time cannot be told apart.
        VerificationError: fewer sites were replaced than the plan names.
    """
    texts = [*pairing_passes(plan, how), *scheduling_passes(how, runner.capture.device)]
    if left_out := [name for name in map(name_of, texts) if name in runner.disabled]:
        raise TimelineError(f"timeline: {left_out[0]} is switched off, so every frame would see every text")
    runner.run([*pairing_passes(plan, how), *carrying_passes(runner, plan)])
    count = 0
    replacing = replacing_passes(plan, how, runner.capture.device, root)
    for one in replacing:
        count = runner.run([one])
    off = [name for name in map(name_of, replacing) if name in runner.disabled]
    if off:
        log.warning("%s is switched off: %d planned sites run as they are", off[0], plan.rewritten)
    elif count != plan.rewritten:
        raise VerificationError(f"rewrite: expected {plan.rewritten} sites replaced, found {count}")
    runner.run(scheduling_passes(how, runner.capture.device))
    restore(runner)
    runner.run(passes_beside(plan, how))
    return count


def restore(runner: Runner) -> int:
    """Put back the model's own attention calls where nothing came in their place.

    Args:
        runner: of a graph that no pass will replace an attention in any more.

    Returns:
        The number of calls.
    """
    if all(stand_in(node) is None for node in runner.graph.nodes):
        return 0
    return runner.run([restore_attention])


def observe(runner: Runner, plan: Plan, recorder: str) -> int:
    """Watch every planned site instead of rewriting it.

    Args:
        runner: of the analysed graph.
        plan: names the sites.
        recorder: name of an open recorder.

    Returns:
        The number of sites.

    Raises:
        CaptureError: learned logits would not count.
    """
    runner.run(carrying_passes(runner, plan, observed=True))
    count = runner.run(observing_passes(plan, recorder))
    restore(runner)
    return count


def cut(runner: Runner, blocks: Collection[str] | None) -> int:
    """Say which nodes are compiled together.

    Args:
        runner: of the rewritten graph.
        blocks: see `cut_blocks`.

    Returns:
        The number of pieces, 0 where the graph has to be compiled as one.
    """
    return runner.run(cutting_passes(blocks))
