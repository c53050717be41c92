"""Same seed, offline, a Ctrl-C that is heard and a clean Dynamo for every test."""

from __future__ import annotations

import gc
import logging
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from long_tests import long_tests

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# A shell ignores Ctrl-C for what it starts in the background, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest listens to loggers that pass nothing on. To who listens to this one, Dynamo writes out each graph and guard.
logging.getLogger("torch.__trace").propagate = True

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers are the parallelism
    torch.set_num_threads(1)


def _settle() -> None:
    """Take what lives now out of the garbage collector's sight, which would go through all of it again and again.

    A process of the tests holds millions of objects: modules, items, what Dynamo remembers of each capture.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long = long_tests()
    for item in items:
        if item.nodeid in long:
            item.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    gc.set_threshold(50_000, 20, 10)  # a capture makes some hundred thousand objects, few of them in cycles
    _settle()


@pytest.fixture(autouse=True, scope="module")
def _settled() -> Iterator[None]:
    yield
    _settle()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
