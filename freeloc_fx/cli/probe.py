"""`freeloc probe`: measure a checkpoint's layers and write its profile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from freeloc_fx.errors import ProfileError
from freeloc_fx.evaluation.metrics import COMPOSITE, score
from freeloc_fx.evaluation.metrics.visionreward import VisionReward
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.request import check_frames
from freeloc_fx.generation.video import SHEETS, check_folder, check_output
from freeloc_fx.planning.profile import Profile
from freeloc_fx.probing import for_length, measured_lengths
from freeloc_fx.probing import probe as run_probe
from freeloc_fx.probing.plot import draw
from freeloc_fx.probing.trials import check

from . import common
from .common import EXAMPLE, Job, UsageError, err, exits, load, out, prepare, progress, scorable
from .outputs import check_apart, check_report

__all__ = ["probe"]


def probe(
    model: common.Model = library.TINY_WAN,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The profile, a .json file; an older one is replaced.")
    ] = Path("profile.json"),
    mode: Annotated[
        Literal["observe", "full"],
        typer.Option(help="observe: two generations. full: the paper's, one for each layer and shift."),
    ] = "observe",
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="Repeat it for more, which the seeds take in turn.",
            show_default="for models that make tiny-wan's scenes: one of them",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    trained: Annotated[
        int | None, typer.Option(min=2, help="Latent frames the model was trained on.", show_default="its profile's")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Target length in frames.", show_default="four times")] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Target lengths as multiples of the trained one, in place of --frames: 2,4,10,16. The profile has the "
            "layers of each; a clip takes those of the nearest. The plot is of the first.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        bool,
        typer.Option(
            "--temperature",
            help="Entropy-matched score temperature for layers that keep every pair; without it a candidate's +temp is "
            "the closed formula.",
        ),
    ] = False,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            help="A strategy to try in every layer beside the rule's assignment; repeat for more. It is taken where "
            "its videos are rewarded clearly more; needs --seeds 3 or more. NAME@2,4 is tried at these of "
            "--lengths only, if it is too slow for the longer ones.",
            metavar="NAME[@LENGTHS]",
            show_default=False,
        ),
    ] = None,
    visionreward: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="QUESTIONS WEIGHTS",
            help="With --mode full or --candidate: reward videos by VisionReward, the paper's measure; its checklist "
            "and weight.json.",
            show_default="tiny-wan's ground truth, where the prompts allow it",
        ),
    ] = None,
    visionreward_model: Annotated[
        str, typer.Option(help="Folder or hub id of its video model.")
    ] = "THUDM/VisionReward-Video",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with VisionReward's weights.")
    ] = False,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    height: common.Height = None,
    width: common.Width = None,
    dtype: common.DtypeOption = "auto",
    device: common.DeviceOption = "auto",
    journal: Annotated[
        Path | None, typer.Option(help="Folder of finished units, for resuming.", show_default="OUTPUT.journal")
    ] = None,
    debug: common.Debug = False,
) -> None:
    """Measure how sensitive each layer is to position and to context, and assign its strategy.

    A probe that was interrupted goes on from its journal when the same command runs again. Beside the profile it
    writes a plot of the sensitivities.
    """
    folder = journal if journal is not None else output.with_suffix(".journal")

    def left() -> str:
        return f"finished units are in {folder}, the same command goes on" if folder.is_dir() else "nothing written"

    with exits(debug, left):
        check_output(output, (".json",))
        picture = check_output(output.with_suffix(".png"), SHEETS)
        check_folder(folder)
        questions, weights = visionreward or (None, None)
        judges = [("--visionreward", questions), ("--visionreward", weights)]
        models = [("--model", model), ("--visionreward-model", visionreward_model)]
        check_apart([output, picture], [*judges, *models, ("--journal", folder / "job.json")])
        check_report(output)
        facts = library.Facts.read(model)
        if trained is None:
            trained = _trained(facts.transformer)
        targets = [_times(n, trained) for n in _multiples(lengths, frames)]
        if frames is not None:
            check_frames(facts, frames)
            targets = [facts.profile_frames(frames)]
        asked = [facts.video_frames(target, f"{target} latent frames, frames") for target in (trained, *targets)]
        wanted = frames if frames is not None else max(asked)
        job = prepare(
            model, None, ["direct"], wanted, height, width, steps, guidance, dtype=dtype, device=device
        )  # fmt: skip
        texts = prompts or [EXAMPLE]
        if not prompts and (why := scorable(job, EXAMPLE)):
            raise UsageError(
                "--prompt: expected one such as the model was trained on, found none; the default is a scene of "
                f"tiny-wan's, and {why}"
            )
        tried = _candidates(candidates or [], trained)
        check(tried, targets, range(seeds), rewarded=True)
        needed = mode == "full" or bool(tried)
        judge = _judge(job, needed, texts, range(seeds), visionreward, visionreward_model, trust_remote_code)
        named = None if judge is None else _judge_name(visionreward, visionreward_model)
        if needed and judge is None:
            why = next(reason for text in texts if (reason := scorable(job, text)))
            if tried:
                raise UsageError(f"--candidate: expected prompts that can be scored, or --visionreward; found: {why}")
            err.print(f"videos are not rewarded, positions are measured by ALD: {why}", highlight=False)
        pipe = load(job)
        with progress() as bar:
            task = bar.add_task("probing", total=None)
            profile = run_probe(
                pipe,
                prompts=texts,
                trained_frames=trained,
                lengths=targets,
                temperature=temperature,
                candidates=tried,
                mode=mode,
                seeds=range(seeds),
                steps=job.steps,
                height=job.height,
                width=job.width,
                guidance=job.guidance,
                reward=judge,
                reward_name=named,
                journal=folder,
                on_unit=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
            )
        profile = replace(profile, name=output.stem)
        profile.save(output)
        draw(profile, picture)
        for count in measured_lengths(profile):
            out.print(f"at {count} latent frames:", highlight=False)
            out.print(_table(for_length(profile, count)))
            _say_trials(profile, count)
        out.print(f"{output}; {picture}; the measurements are kept in {folder}", highlight=False, soft_wrap=True)


def _trained(transformer: Any) -> int:
    """Latent frames of the training clips, by the shipped profile.

    Raises:
        UsageError: none is for this model.
    """
    try:
        return Profile.for_model(transformer).trained_frames
    except ProfileError as error:
        raise UsageError(
            f"--trained: expected the latent frames of the training clips, since {str(error).splitlines()[0]}"
        ) from error


def _judge(
    job: Job,
    needed: bool,
    texts: list[str],
    seeds: Sequence[int],
    files: tuple[Path, Path] | None,
    model: str,
    trust: bool,
) -> Callable[[Any, int], float] | None:
    """Choose the reward, where one is needed: VisionReward where its files are given, else the ground truth if there is
    one.

    Raises:
        UsageError: VisionReward where nothing is rewarded.
        MetricError: as `VisionReward.load`.
        DependencyError: as `VisionReward.load`.
    """
    if files is not None:
        if not needed:
            raise UsageError("--visionreward: only --mode full and --candidate reward videos, found neither")
        loaded = VisionReward.load(*files, model, device=job.device, dtype=job.dtype, trust_remote_code=trust)
        return loaded.reward(texts, seeds)
    if needed and all(scorable(job, text) is None for text in texts):
        return lambda video, seed: score(video, texts[seed % len(texts)]).composite
    return None


def _judge_name(files: tuple[Path, Path] | None, model: str) -> str:
    """What the reward is: VisionReward by its model and the content of its files, or tiny-wan's ground truth."""
    if files is None:
        return COMPOSITE
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes())
    return f"VisionReward {model} {content.hexdigest()[:16]}"


def _multiples(lengths: str | None, frames: int | None) -> list[float]:
    """The lengths asked for, as multiples of the trained one, without repeats.

    Raises:
        UsageError: not numbers above 1, or --frames beside them.
    """
    if lengths is None:
        return [4.0]
    if frames is not None:
        raise UsageError("--lengths and --frames: expected one of them, found both")
    return _numbers("--lengths", lengths)


def _times(multiple: float, trained: int) -> int:
    """Latent frames of a multiple of the trained length; the first latent frame holds one frame of video only."""
    return round((trained - 1) * multiple) + 1


def _numbers(option: str, text: str) -> list[float]:
    """Comma-separated multiples of the trained length, without repeats.

    Raises:
        UsageError: not numbers above 1; names the option.
    """
    try:
        found = list(dict.fromkeys(float(item) for item in text.split(",")))
    except ValueError:
        found = []
    if not found or not all(1 < n < 1000 for n in found):
        raise UsageError(f"{option}: expected multiples of the trained length above 1, as in 2,4,10,16; found {text!r}")
    return found


def _candidates(options: Sequence[str], trained: int) -> dict[str, list[int] | None]:
    """Name -> latent frames of the lengths at which it is tried, None for all.

    Args:
        options: NAME or NAME@2,4, in multiples of the trained length.
        trained: latent frames of the training clips.

    Raises:
        UsageError: lengths that are not numbers above 1, a name twice.
    """
    found: dict[str, list[int] | None] = {}
    for option in options:
        name, at, lengths = option.partition("@")
        if name in found:
            raise UsageError(f"--candidate: expected each strategy once, found {name} twice")
        found[name] = [_times(n, trained) for n in _numbers("--candidate", lengths)] if at else None
    return found


def _say_trials(profile: Profile, count: int) -> None:
    """What was tried at a measured length, and what came of it."""
    found: Any = (profile.provenance or {})["lengths"][str(count)]
    for name, trial in found.get("trials", {}).items():
        reward = sum(trial["rewards"]) / len(trial["rewards"])
        words = f"{trial['difference']:+.3f} +-{trial['error']:.3f} from the rule's assignment"
        taken = " (taken)" if set(found["layers"].values()) == {name} else ""
        out.print(f"{name}: reward {reward:.3f}, {words}{taken}", highlight=False, soft_wrap=True)


def _table(profile: Profile) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("layer", "position", "context", "matched temp.", "strategy"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    provenance: Any = profile.provenance or {}
    matched = provenance["lengths"][str(provenance["target_frames"])]["matched_temperature"]
    for layer, found in (profile.sensitivities or {}).items():
        cells = [
            f"{value:.3f}" + (f" +-{error:.3f}" if error is not None else "")
            for value, error in ((found.position, found.position_error), (found.context, found.context_error))
        ]
        table.add_row(str(layer), *cells, f"{matched[str(layer)]:.3f}", profile.strategy_name(layer))
    return table
