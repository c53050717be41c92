"""From a model's name to a long video: load a pipeline, check a request before any long work, apply a strategy, run.

`freeloc generate` and `freeloc compare` are these functions with a progress bar; scripts call them directly:

    facts = Facts.read("tiny-wan")
    check_request(facts, 321, 64, 64)
    pipe = load_pipeline("tiny-wan")
    apply(pipe, strategy="vrpr+tsa")
    video = generate(pipe, prompt, frames=321)

Each stage has a file of its own: `request`, `loading`, `enabling`, `running`. This one gathers them.
"""

from __future__ import annotations

from freeloc_fx.errors import ModelError

from .components import TRANSFORMERS
from .embedded import EMBEDDED, TINY_WAN, Defaults
from .enabling import apply, disable, enable, is_transformed, plan_for
from .latents import Latents, LatentsError
from .loading import load_pipeline
from .request import Facts, check_request, choose_profile, defaults, resolve_model
from .running import Video, decode_latents, generate

__all__ = [
    "EMBEDDED",
    "TINY_WAN",
    "TRANSFORMERS",
    "Defaults",
    "Facts",
    "Latents",
    "LatentsError",
    "ModelError",
    "Video",
    "apply",
    "check_request",
    "choose_profile",
    "decode_latents",
    "defaults",
    "disable",
    "enable",
    "generate",
    "is_transformed",
    "load_pipeline",
    "plan_for",
    "resolve_model",
]
