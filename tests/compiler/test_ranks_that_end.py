"""A rank that dies, fails or hangs under context parallelism ends the run, with its message, in good time."""

from __future__ import annotations

import os
import time

import pytest
import torch.distributed as dist
from models import wan
from ranks import RanksError, context_parallel, on_ranks
from transformed import ALL, run

from freeloc_fx import transform


def one_of_them_is_killed(rank: int) -> None:
    model = wan()
    context_parallel(model, ulysses_degree=2)
    if rank == 1:
        os._exit(9)
    run(transform(model, ALL, backend="eager", attention="tiles"))
    time.sleep(600)


def one_of_them_raises(rank: int) -> None:
    if rank == 1:
        raise LookupError("no such thing on rank 1")
    dist.barrier()


def one_of_them_hangs(rank: int) -> None:
    if rank == 0:
        time.sleep(600)


def test_a_rank_that_is_killed_ends_the_run() -> None:
    started = time.monotonic()
    with pytest.raises(RanksError, match=r"rank 1: it was killed, exit code 9|rank 0: .*[Cc]onnection"):
        on_ranks(one_of_them_is_killed, 2)
    assert time.monotonic() - started < 60


def test_a_rank_that_fails_ends_the_others_with_its_message() -> None:
    with pytest.raises(RanksError, match=r"no such thing on rank 1|[Cc]onnection"):
        on_ranks(one_of_them_raises, 2)


def test_ranks_that_hang_are_ended() -> None:
    with pytest.raises(RanksError, match=r"ranks \[0.*still running"):
        on_ranks(one_of_them_hangs, 2, limit=4)
