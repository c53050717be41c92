"""The C++ kernel of `tiles`, built once and kept in torch's extension cache.

It needs a C++ compiler at run time, as Inductor does on CPU, and nothing of torch: it compiles in a few seconds. The
cache is `torch.utils.cpp_extension.get_default_build_root()`, or TORCH_EXTENSIONS_DIR; a build is named by its source
and by what the compiler says of this processor, so that machines may share it, and ends in a checksum, so that a
damaged one is built again and not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import signal
import subprocess
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch

from freeloc_fx.compat import torch_library

from .spans import Spans

__all__ = ["build", "gain", "launch", "load", "parallel"]


_log = logging.getLogger(__name__)


_HOME = os.getpid()
"""The process that imported this. In a fork of it the threads of its OpenMP are gone: waiting for them never ends."""


_SECONDS = 0.2
"""For so long the kernel runs before Python looks at signals, so that Ctrl-C does not wait for a long attention."""


_ENOUGH = 0.75
"""Of float32's speed: from here on bfloat16 is multiplied as it is, which reads half as much; a Xeon: 0.46 to 0.57."""


_TIMEOUT = 300
"""Seconds that the compiler may take."""


_SOURCES = ("tile_kernel.cpp", *(f"tile_{name}.h" for name in ("floats", "halves", "layout", "products", "vectors")))


class _Tensor(ctypes.Structure):
    """As `Tensor` in tile_layout.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "token"))]

    @staticmethod
    def of(x: torch.Tensor) -> _Tensor:
        return _Tensor(x.data_ptr(), *x.stride()[:3])


class _LongAttention(ctypes.Structure):
    """As `LongAttention` in tile_layout.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "dim", "half")),
        *((name, _Tensor) for name in ("q", "k", "v", "out")),
        ("spans", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("start", "level", "phase", "decay")),
        *((name, ctypes.c_int64) for name in ("turns", "turn_heads", "pairs")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "first", "second", "bits")),
        ("frame", ctypes.c_int64),
        ("valid", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("seconds", ctypes.c_double),
        ("next", ctypes.c_int64),
    ]


def _run(command: list[str]) -> str:
    """The command's output.

    Raises:
        OSError: it is not there, failed, or took longer than 5 minutes; with what it said.
        KeyboardInterrupt: Ctrl-C reached it. A thread would not hear of it otherwise, and blame the compiler.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]}: expected to end within {_TIMEOUT} s") from None
    if done.returncode in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt
    if done.returncode:
        raise OSError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return done.stdout


def _sealed(content: bytes) -> bytes:
    """A library with its checksum behind it, where no loader looks."""
    return content + hashlib.sha256(content).digest()


def _is_whole(library: Path) -> bool:
    """Whether a library is as it was written. Loading half of one can end the process."""
    content = library.read_bytes()
    return _sealed(content[:-32]) == content


def build(*, again: bool = False) -> Path:
    """Compile the kernel if it is not in the cache, or damaged there.

    Args:
        again: compile it in any case.

    Returns:
        The shared library.

    Raises:
        OSError: no compiler, a compiler without GCC's vector extension, or a cache that cannot be written.
    """
    if os.name == "nt":
        raise OSError("the kernel needs the vector extension of GCC or clang, which MSVC lacks")
    # Not imported with the module: the import looks for CUDA.
    from torch.utils.cpp_extension import get_cxx_compiler, get_default_build_root

    compiler = get_cxx_compiler()
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    flags = ["-std=gnu++17", "-O3", native, "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
    sources = {name: files(__package__).joinpath(name).read_text() for name in _SOURCES}
    target = _run([compiler, *flags[:3], "-dM", "-E", "-x", "c++", os.devnull])  # compiler, version, processor
    digest = hashlib.sha256("\0".join([*sources.values(), target, *flags]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "freeloc_fx"
    library = folder / f"long_attention_{digest}.so"
    if library.exists() and not again:
        if _is_whole(library):
            return library
        _log.warning("long attention: the cached kernel %s is damaged and is built again", library)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name, text in sources.items():
            (Path(scratch) / name).write_text(text)
        made = Path(scratch) / library.name
        _run([compiler, *flags, str(Path(scratch) / "tile_kernel.cpp"), "-o", str(made)])
        made.write_bytes(_sealed(made.read_bytes()))
        os.replace(made, library)  # whole or not at all, whoever else builds it
    return library


@lru_cache(1)
def load() -> ctypes.CDLL:
    """Load the kernel, built at the first call of this process if need be.

    Returns:
        The library, kept for the process.

    Raises:
        OSError: as `build`.
    """
    path = build()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # whole, but made for another system
        _log.warning("long attention: the cached kernel cannot be loaded and is built again: %s", error)
        library = ctypes.CDLL(str(build(again=True)))
    library.freeloc_long_attention.argtypes = [ctypes.POINTER(_LongAttention)]
    library.freeloc_long_attention.restype = ctypes.c_int64
    library.freeloc_product_gain.restype = ctypes.c_double
    return library


@lru_cache(1)
def gain() -> float:
    """Measure how fast this processor multiplies bfloat16 beside float32, in a few milliseconds.

    AVX-512's dot products of bfloat16 run at about half the speed of float32 on a Xeon, so that bfloat16 is widened
    there unless there is AMX. On an EPYC the kernel takes two thirds of float32's time with them.

    Returns:
        How many times as fast; 0 where it cannot multiply bfloat16 at all, infinite with AMX.

    Raises:
        OSError: as `load`.
    """
    found: float = load().freeloc_product_gain()
    way = "as it is" if found >= _ENOUGH else "widened to float32"
    _log.info("long attention multiplies bfloat16 %s: as it is, at %.2g of the speed of float32", way, found)
    return found


def parallel() -> int | None:
    """Find GOMP_parallel in the OpenMP that torch runs on.

    Its threads spin for milliseconds after each of torch's own operators; threads of the kernel's own would have to
    share the processors with them.

    Returns:
        Its address; None where torch's OpenMP has no function of that name (macOS), and in a forked process.
    """
    return _gomp_parallel() if os.getpid() == _HOME else None


@lru_cache(1)
def _gomp_parallel() -> int | None:
    try:
        found = ctypes.CDLL(torch_library()).GOMP_parallel  # searched in what torch links to
    except (AttributeError, OSError):
        return None
    return ctypes.cast(found, ctypes.c_void_p).value


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    spans: Spans,
    scale: float,
    valid: torch.Tensor | None,
) -> None:
    """Run the kernel.

    Args:
        q: (batch, heads, tokens, head_dim) on CPU, float32 or bfloat16, channels contiguous.
        k: as q.
        v: as q.
        out: where the result goes, as q.
        spans: the tables of the spec.
        scale: factor on q k, as for a softmax with the natural exponential.
        valid: uint8 (batch, tokens), 0 for a key that does not count; None where all count.

    Raises:
        MemoryError: the kernel got no memory or no threads.
        OSError: as `load`.
        KeyboardInterrupt: Ctrl-C, at most a moment after it came.
    """

    def pointer(x: torch.Tensor | None) -> int | None:
        return None if x is None else x.data_ptr()

    turn_heads, turns, pairs = spans.cosine.shape
    task = _LongAttention(
        *q.shape[:2],
        q.shape[3],
        0 if q.dtype == torch.float32 else 2 if gain() >= _ENOUGH else 1,
        *(_Tensor.of(x) for x in (q, k, v, out)),
        len(spans.start) - 1,
        *(pointer(x) for x in (spans.start, spans.level, spans.phase, spans.decay)),
        turns,
        turn_heads,
        pairs,
        *(pointer(x) for x in (spans.cosine, spans.sine, spans.first, spans.second, spans.bits)),
        spans.frame,
        pointer(valid),
        scale * 1.4426950408889634,  # log2(e): the kernel's exponentials are in base 2
        torch.get_num_threads(),
        parallel(),
        None,
        _SECONDS,
        0,
    )
    run = load().freeloc_long_attention
    state = run(ctypes.byref(task))
    if state > 0:
        # By torch's allocator, so that whoever measures memory sees it.
        scratch = torch.empty(state, dtype=torch.float32, device="cpu")
        task.scratch = scratch.data_ptr()
        while (state := run(ctypes.byref(task))) > 0:  # Python raises KeyboardInterrupt here
            pass
        if state == 0:
            return
    raise MemoryError("long attention: the kernel got no memory or no threads")
