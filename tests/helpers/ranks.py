"""Run a function on several ranks of torch.distributed, over gloo on this machine, and give back what each of them
returned.

Ranks are forked off a server that has imported torch and diffusers once, so that a test costs tenths of a second
beside its own work. What hangs is ended at a time limit, and a rank that fails ends the others with its message.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from freeloc_fx.generation.parallel import GLOO, an_accelerator

__all__ = ["RanksError", "context_parallel", "of_first", "on_ranks"]

LIMIT = 240.0
"""Seconds that ranks may take all together before they are killed."""


class RanksError(AssertionError):
    """A rank failed, was killed, or did not end in time."""


def _context() -> Any:
    context = get_context("forkserver")
    context.set_forkserver_preload(["ranks_preload"])
    before = os.environ.get("PYTHONPATH")
    # Python 3.11 hands sys.path to its server, which does not use it, and passes over what it cannot import.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def on_ranks(function: Callable[..., Any], count: int, *arguments: Any, limit: float = LIMIT) -> list[Any]:
    """What `function(rank, *arguments)` returns on each of `count` ranks.

    Args:
        function: of a module; its results are whatever torch.save takes.
        count: how many ranks.
        *arguments: what each of them gets, which must be picklable.
        limit: seconds after which the ranks are killed.

    Raises:
        RanksError: a rank failed (its traceback), was killed, or all of them took too long.
    """
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(folder, function, rank, count, arguments, limit), daemon=True)
            for rank in range(count)
        ]
        for rank in ranks:
            rank.start()
        try:
            _wait(ranks, Path(folder), time.monotonic() + limit)
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.kill()
                rank.join()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _wait(ranks: Sequence[Any], folder: Path, until: float) -> None:
    while any(rank.is_alive() for rank in ranks):
        failed = [number for number, rank in enumerate(ranks) if rank.exitcode not in (None, 0)]
        if failed:
            break
        if time.monotonic() > until:
            stuck = [number for number, rank in enumerate(ranks) if rank.is_alive()]
            raise RanksError(f"ranks {stuck} were still running at the time limit")
        time.sleep(0.02)
    for number, rank in enumerate(ranks):
        if rank.exitcode not in (None, 0):
            told = folder / f"{number}.txt"
            text = told.read_text(encoding="utf-8") if told.exists() else f"it was killed, exit code {rank.exitcode}"
            raise RanksError(f"rank {number}: {text}")


def _rank(
    folder: str, function: Callable[..., Any], rank: int, count: int, arguments: Sequence[Any], limit: float
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    try:
        store = dist.FileStore(f"{folder}/store", count)
        dist.init_process_group(GLOO, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=limit))
        torch.manual_seed(0)
        result = function(rank, *arguments)
        torch.save(result, f"{folder}/{rank}.part")
        Path(f"{folder}/{rank}.part").rename(f"{folder}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(f"{folder}/{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)


def of_first(rank: int, make: Callable[[], Any]) -> Any:
    """What `make` gives on the first rank, on all of them: what one process makes is made by one.

    Args:
        rank: which rank this is.
        make: called on the first rank; its result is whatever can be pickled.
    """
    made = [make() if rank == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def context_parallel(model: Any, cp_plan: Any = None, **options: Any) -> Any:
    """The model after diffusers' `enable_parallelism(config=ContextParallelConfig(**options))`."""
    from diffusers import ContextParallelConfig

    with an_accelerator():
        model.enable_parallelism(config=ContextParallelConfig(**options), **({"cp_plan": cp_plan} if cp_plan else {}))
    return model
