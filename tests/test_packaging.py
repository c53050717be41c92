"""The wheel, in an environment of its own: everything a user needs is in it, and nothing is read from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

APART = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""An environment that does not lead to a checkout."""

CHECK = """
import json, importlib.metadata, pathlib
import freeloc_fx, freeloc_fx.passes, freeloc_fx.profiles, freeloc_fx.passes.infer_rope
from freeloc_fx import Profile
from freeloc_fx import tiny_joint
from freeloc_fx.tiny_wan import path
print(json.dumps({
    "file": freeloc_fx.__file__,
    "passes": freeloc_fx.passes.infer_rope.__file__,
    "profiles": list(Profile.names()),
    "layers": Profile.load("tiny-wan").layer_count,
    "model": sorted(p.name for p in pathlib.Path(path()).iterdir()),
    "joint": sorted(p.name for p in tiny_joint.path().iterdir()),
    "version": importlib.metadata.version("freeloc_fx") == freeloc_fx.__version__,
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with our wheel; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    import shutil

    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("freeloc_fx", "passes", "profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run([str(a) for a in build], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    here = Path(sysconfig.get_path("purelib"))
    relative = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    (relative / "dependencies.pth").write_text(f"{here}\n")
    interpreter = folder / "env" / "bin" / "python"
    subprocess.run(
        [str(interpreter), "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)], check=True
    )
    return interpreter


def test_the_wheel_is_complete(python: Path, tmp_path: Path) -> None:
    out = subprocess.run(
        [str(python), "-c", CHECK], cwd=tmp_path, env=APART, check=True, capture_output=True, text=True
    ).stdout
    found = json.loads(out.splitlines()[-1])
    environment = str(python.parents[1])
    assert found["file"].startswith(environment)
    assert found["passes"].startswith(environment)
    assert {"tiny-wan", "wan2.1-t2v-1.3b"} <= set(found["profiles"])
    assert found["layers"] == 10
    assert {"model_index.json", "transformer", "vae", "text_encoder", "tokenizer", "scheduler"} <= set(found["model"])
    assert {"model_index.json", "transformer", "text_encoder", "tokenizer", "scheduler"} == set(found["joint"])
    assert found["version"]


def test_the_command_is_installed(python: Path, tmp_path: Path) -> None:
    command = python.parent / "freeloc"
    listed = subprocess.run(
        [str(command), "profiles", "list"], cwd=tmp_path, env=APART, check=True, capture_output=True, text=True
    )
    assert "wan2.1-t2v-1.3b" in listed.stdout


def test_the_weights_are_small_and_not_pickled() -> None:
    model = ROOT / "freeloc_fx" / "generation" / "tiny_wan" / "model"
    weights = [p for p in model.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    assert weights and all(p.suffix == ".safetensors" for p in weights)
    assert sum(p.stat().st_size for p in weights) <= 25e6
