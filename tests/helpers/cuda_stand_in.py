"""Models on a CUDA device that is not there: `python tests/helpers/cuda_stand_in.py FOLDER NAME...`, one line each.

`cuda_stand_in.cpp` gives a CPU build of torch a device "cuda" on which operators run on CPU. It is of the whole
process. What lies on the wrong device, is made NumPy's without a copy, or is a mask that CUDA's attention cannot read
fails as on a GPU. No kernel of a GPU runs: see bench/cuda_interpreted.py for those.
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers_models import CASES, arguments, build
from torch.utils.cpp_extension import load
from transformed import distance, first

from freeloc_fx import Profile, transform

LOWERINGS = {"flex": "aot_eager", "calls": "eager"}
"""Long attention -> the compiler that it runs under."""
STRATEGY, TRAINED, TIMES = "vrpr+tsa+temp", 5, 2


def pretend(folder: Path) -> None:
    """Make a device "cuda"; the library is built in a folder."""
    import torch._dynamo.device_interface as devices

    source = Path(__file__).with_suffix(".cpp")
    load("cuda_stand_in", [str(source)], build_directory=str(folder), extra_cflags=["-O1"])
    properties = types.SimpleNamespace(name="stand-in", major=9, minor=0, total_memory=2**36, multi_processor_count=132)
    answers = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "set_device": None,
        "synchronize": None, "get_device_properties": properties, "get_device_capability": (9, 0), "_lazy_init": None,
        "get_device_name": "stand-in", "is_bf16_supported": True, "mem_get_info": (2**36, 2**36),
        "memory_allocated": 0, "max_memory_allocated": 0, "reset_peak_memory_stats": None, "empty_cache": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None, "manual_seed": None,
        "manual_seed_all": None, "_exchange_device": 0, "_maybe_exchange_device": 0, "exchange_device": 0,
        "maybe_exchange_device": 0, "get_compute_capability": 90, "is_current_stream_capturing": False,
    }  # fmt: skip
    for name, value in answers.items():
        for owner in (torch.cuda, devices.CudaInterface, devices.CudaInterface.Worker):
            if hasattr(owner, name):
                answer = lambda *_, value=value, **__: value  # noqa: E731
                setattr(owner, name, staticmethod(answer) if isinstance(owner, type) else answer)


def moved(x: Any) -> Any:
    """Tensors in a structure, on the device."""
    if isinstance(x, torch.Tensor):
        return x.to("cuda")
    if isinstance(x, dict):
        return {key: moved(value) for key, value in x.items()}
    return type(x)(map(moved, x)) if isinstance(x, (list, tuple)) else x


def compare(name: str, lowering: str) -> dict[str, Any]:
    """One model beyond its trained length: on the device, beside the reference on CPU."""
    torch.compiler.reset()
    model = build(name)
    given = arguments(name, model, TIMES * (TRAINED - 1) + (2 if "1.5" in name else 1))
    profile = Profile(trained_frames=TRAINED, layers=STRATEGY)
    with torch.no_grad():
        expected = first(transform(model, profile, backend="eager", attention="reference")(**given))
        changed = transform(model.to("cuda"), profile, backend=LOWERINGS[lowering], attention=lowering)
        found = first(changed(**moved(given)))
    return {"model": name, "lowering": lowering, "device": str(found.device), "error": distance(found.cpu(), expected)}


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    pretend(folder)
    warnings.simplefilter("ignore")
    # The tiny models' heads are smaller than a GPU's kernel takes; none runs here.
    with mock.patch("freeloc_fx.passes.reencode_rotary.check_site"):
        for name in names:
            for lowering in LOWERINGS:
                print(json.dumps(compare(name, lowering)), flush=True)


if __name__ == "__main__":
    main()
