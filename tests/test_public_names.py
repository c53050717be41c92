"""What `freeloc_fx` exports, when it is imported, and the names under which modules were found before they moved."""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import freeloc_fx
from freeloc_fx import moved
from freeloc_fx.files import installed_version

PUBLIC = {
    "FreelocError", "Plan", "Profile", "plan", "plans", "probe", "restore", "transform", "enable", "disable",
    "is_transformed", "plan_for", "strategies", "context_windows", "freenoise", "denoising_step", "VRPR", "TSA",
    "timeline", "__version__",
}  # fmt: skip


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    root = Path(freeloc_fx.__file__).parents[1]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_the_public_names() -> None:
    assert set(freeloc_fx.__all__) == PUBLIC and set(dir(freeloc_fx)) >= PUBLIC
    namespace: dict[str, Any] = {}
    exec("from freeloc_fx import *", namespace)
    assert set(namespace) >= PUBLIC
    for name in PUBLIC:
        assert getattr(freeloc_fx, name) is namespace[name]
    with pytest.raises(AttributeError, match="module 'freeloc_fx' has no attribute 'nope'"):
        freeloc_fx.nope  # type: ignore[attr-defined] # noqa: B018
    with pytest.raises(ImportError):
        exec("from freeloc_fx import nope")
    assert callable(freeloc_fx.transform) and callable(freeloc_fx.plan) and callable(freeloc_fx.probe)


def test_rarely_used_names_and_old_modules_wait_until_they_are_used() -> None:
    code = (
        "import sys, freeloc_fx\n"
        "later = [n for n in ('generation.windows', 'generation.enabling', 'evaluation') "
        "if 'freeloc_fx.' + n in sys.modules]\n"
        "later += [n for n in ('diffusers', 'transformers', 'matplotlib') if n in sys.modules]\n"
        "old = [n for n in freeloc_fx.moved.MOVED if 'freeloc_fx.' + n in sys.modules]\n"
        "print(later, old, callable(freeloc_fx.enable), 'freeloc_fx.generation.enabling' in sys.modules)"
    )
    assert run(code) == "[] [] True True"


def test_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert freeloc_fx.__version__ == installed_version()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert installed_version() == "0+unknown"


# What the README and docstrings named, and where it is now.
DOCUMENTED = {
    "noise.freenoise": "generation.noise",
    "windows.context_windows": "generation.windows",
    "decoding.in_chunks": "generation.decoding",
    "generate.load_pipeline": "generation.loading",
    "generate.generate": "generation.running",
    "generate.apply": "generation.enabling",
    "generate.Facts": "generation.request",
    "generate.check_request": "generation.request",
    "generate.choose_profile": "generation.request",
    "generate.ModelError": "errors",
    "tiny_wan.ModelError": "errors",
    "tiny_wan.path": "generation.tiny_wan",
    "tiny_wan.scenes.Scene": "generation.tiny_wan.scenes",
    "tiny_joint.path": "generation.tiny_joint",
    "tiny_joint.pipeline.TinyJointPipeline": "generation.tiny_joint.pipeline",
    "video.write_video": "generation.video",
    "metrics.score": "evaluation.metrics.ground_truth",
    "metrics.Evaluation": "evaluation.metrics.evaluation",
    "metrics.tracking.analyse": "evaluation.metrics.tracking",
    "report.Results": "evaluation.report.rows",
    "report.judge_claims": "evaluation.report.claims",
}


@pytest.mark.parametrize("path", DOCUMENTED)
def test_documented_names_are_the_same_objects_as_ever(path: str) -> None:
    module, _, name = path.rpartition(".")
    new = importlib.import_module(f"freeloc_fx.{DOCUMENTED[path]}")
    expected = getattr(new, name)
    assert getattr(importlib.import_module(f"freeloc_fx.{module}"), name) is expected
    namespace: dict[str, Any] = {}
    exec(f"from freeloc_fx.{module} import {name}", namespace)
    assert namespace[name] is expected
    exec(f"import freeloc_fx.{module}\nfound = freeloc_fx.{path}", namespace)
    assert namespace["found"] is expected


def test_an_old_module_is_the_new_one() -> None:
    each = (
        "found = freeloc_fx.{old}\n"
        "import freeloc_fx.{old} as again\n"
        "from freeloc_fx import {old} as third\n"
        "new = importlib.import_module('freeloc_fx.{new}')\n"
        "names = new.__name__, new.__spec__.name\n"
        "print(found is new, again is new, third is new, *names, importlib.reload(found) is new)"
    )
    code = [each.format(old=old, new=new) for old, new in moved.MOVED.items()]
    expected = [f"True True True freeloc_fx.{new} freeloc_fx.{new} True" for new in moved.MOVED.values()]
    assert run("\n".join(["import importlib, freeloc_fx", *code])).splitlines() == expected


def test_files_of_a_moved_package_load_once() -> None:
    code = (
        "import freeloc_fx.metrics.tracking, freeloc_fx.tiny_joint.pipeline, freeloc_fx.evaluation.metrics as m, sys\n"
        "from freeloc_fx.evaluation.metrics import tracking\n"
        "print(freeloc_fx.metrics is m, freeloc_fx.metrics.tracking is tracking,"
        " sys.modules['freeloc_fx.metrics.tracking'] is tracking)"
    )
    assert run(code) == "True True True"


def test_names_that_never_were_are_not_found() -> None:
    for name in ("freeloc_fx.nope", "freeloc_fx.metrics.nope", "freeloc_fx.noise.nope"):
        with pytest.raises(ModuleNotFoundError, match=name.rpartition(".")[2]):
            importlib.import_module(name)


def test_functions_keep_their_names_from_modules_that_moved() -> None:
    # The old modules freeloc_fx.plan, .transform and .probe had the names of functions, which come first.
    assert not {"plan", "transform", "probe"} & set(moved.MOVED)


def test_pickles_name_the_new_place_and_those_of_the_old_one_load() -> None:
    from freeloc_fx.generation.embedded import Defaults
    from freeloc_fx.generation.tiny_wan.scenes import Shape

    shape = Shape("circle", "red", 1.0, 2.0, 0.0)
    data = pickle.dumps(shape, protocol=0)
    assert b"freeloc_fx.generation.tiny_wan.scenes" in data
    assert pickle.loads(data) == shape
    assert pickle.loads(data.replace(b"freeloc_fx.generation.tiny_wan", b"freeloc_fx.tiny_wan")) == shape
    assert pickle.loads(pickle.dumps(Defaults(1, 2, 3, 4.0))) == Defaults(1, 2, 3, 4.0)


def test_resources_of_a_moved_package() -> None:
    import importlib.resources

    assert (importlib.resources.files("freeloc_fx.tiny_wan") / "model" / "model_index.json").is_file()


def test_walking_the_packages_ends() -> None:
    """Documentation tools do it; in a checkout the package must not be found inside itself."""
    walk = pkgutil.walk_packages(freeloc_fx.__path__, "freeloc_fx.")
    names = [each.name for each in itertools.islice(walk, 2000)]
    assert len(names) == len(set(names)) and "freeloc_fx.method.positions" in names
    assert not [name for name in names if name.count("freeloc_fx") > 1]
