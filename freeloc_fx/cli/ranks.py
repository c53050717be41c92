"""Several processes that make one video: what torchrun started, and who of them speaks and writes.

torchrun --nproc_per_node 8 -m freeloc_fx.cli generate PROMPT --parallel ulysses --shard fsdp
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import typer

from freeloc_fx.generation.decoding import chunk_of
from freeloc_fx.generation.parallel import GLOO, shard_weights, share_tokens
from freeloc_fx.method.shards import Shards

from .common import Job, UsageError, err, out

__all__ = ["OtherRank", "Parallel", "Ranks", "Shard", "ranks"]


Parallel = Annotated[
    Literal["ulysses"] | None,
    typer.Option(help="Share the tokens over the processes that torchrun started.", show_default="none"),
]


Shard = Annotated[
    Literal["fsdp"] | None,
    typer.Option(help="Share the weights over the processes that torchrun started.", show_default="none"),
]


class OtherRank(Exception):
    """Ends a generation on a rank that writes and decodes nothing, once denoising is done."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one run.

    Args:
        rank: of this one.
        count: how many there are.
        parallel: how tokens are shared; None where each holds all.
        shard: how weights are shared; None where each holds all.
    """

    rank: int = 0
    count: int = 1
    parallel: str | None = None
    shard: str | None = None

    @property
    def writes(self) -> bool:
        """Whether this one writes the files and draws the bar."""
        return self.rank == 0

    @property
    def shards(self) -> Shards | None:
        """The processes as those who share the decoding; None for a single one."""
        return Shards(self.count, self.rank) if self.count > 1 else None

    def share(self, pipe: Any, job: Job) -> None:
        """Share out a loaded pipeline, before a strategy is applied to it.

        Args:
            pipe: the same on every rank.
            job: the checked request.

        Raises:
            ModelError: its tokens cannot be shared out.
        """
        if self.parallel is not None:
            share_tokens(pipe, job.latent)
        if self.shard is not None:
            shard_weights(pipe)

    def denoise(
        self,
        job: Job,
        pipe: Any,
        prompt: str | Mapping[int, str],
        seed: int,
        latents: torch.Tensor | None,
        timing: Mapping[str, Any] | None = None,
        *,
        decode: bool,
    ) -> None:
        """Take part in a generation, and leave what is written to the rank that writes.

        Args:
            job: the checked request.
            pipe: shared out, with a strategy.
            prompt: what to show.
            seed: of all noise.
            latents: initial noise; None for the pipeline's own.
            timing: as of `Job.run`.
            decode: whether frames are decoded by all ranks; else this one is done after the last step.
        """

        def done(_: Any) -> None:
            if not decode or chunk_of(pipe.vae, job.height, job.width) is None:
                raise OtherRank

        with contextlib.suppress(OtherRank):
            job.run(pipe, prompt, seed, lambda *_: None, latents, done, lambda _: None, self.shards, timing)


@contextmanager
def ranks(parallel: str | None, shard: str | None) -> Iterator[Ranks]:
    """Take part in the process group that torchrun has described in the environment; all but rank 0 are silent.

    Args:
        parallel: as of the command line.
        shard: as of the command line.

    Yields:
        The processes.

    Raises:
        UsageError: one process was asked to share, or several were started that share nothing.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    asked = " ".join(name for name, value in (("--parallel", parallel), ("--shard", shard)) if value)
    if count == 1:
        if asked:
            raise UsageError(
                f"{asked}: expected several processes, found one: torchrun --nproc_per_node N -m freeloc_fx.cli "
                "generate ..."
            )
        yield Ranks()
        return
    if not asked:
        raise UsageError(
            f"torchrun started {count} processes, each of which would make the whole video: expected --parallel "
            "ulysses, --shard fsdp or both"
        )
    rank = int(os.environ["RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if cuda else GLOO)
    quiet = [console.quiet for console in (out, err)]
    try:
        if rank:
            out.quiet = err.quiet = True
        yield Ranks(rank, count, parallel, shard)
        dist.barrier()  # nobody ends while rank 0 writes, and rank 0 not before the others are done
    except BaseException as error:
        if rank and not isinstance(error, typer.Exit):
            err.quiet = False
            err.print(f"rank {rank} of {count} failed: {type(error).__name__}", highlight=False, soft_wrap=True)
        raise
    finally:
        out.quiet, err.quiet = quiet
        if own:
            dist.destroy_process_group()
