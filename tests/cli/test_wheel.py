"""A wheel in an empty folder: `qil` alone decomposes, trains, converts, validates, evaluates and plans.

Nothing of the repository is on the path: the wheel is installed into a folder of its own, and its packages are found
before those of the environment.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from waiting import simulated

from qil_jax.layers.layered_image import LayeredImage
from qil_jax.shipped import shipped_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
pytestmark = pytest.mark.full


def finished(words: list[object], **how) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **how)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, in which no earlier build has left anything."""
    source, out = tmp_path_factory.mktemp("source") / "qil_jax", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("qil_jax", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    done = finished(pip, env={**os.environ, "TMPDIR": str(source.parent)})
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder into which the wheel is installed; the commands are in its folder bin."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel]
    done = finished(pip)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def qil(installed, tmp_path, monkeypatch):
    """A function that calls `qil` in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    path = f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(installed), "XLA_FLAGS": simulated(1)}

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return finished(["qil", *words], env=env)

    return call


def scenes(folder: Path, split: str, count: int) -> Path:
    """Records as folders of PNGs: a plain ground and a square on it."""
    rng = np.random.default_rng(0)
    for number in range(count):
        layers = np.zeros((2, SIDE, SIDE, 4), np.uint8)
        layers[0] = (*rng.integers(0, 256, 3), 255)
        layers[1, 8:40, 8:40] = (*rng.integers(0, 256, 3), 255)
        LayeredImage(layers=layers, names=("ground", "square")).save(folder / split / f"{number:05d}")
    return folder


def test_it_carries_the_model_the_presets_and_both_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        model = {f.relative_to(ROOT).as_posix() for f in shipped_checkpoint().rglob("*") if f.is_file()}
        assert len(model) >= 11 and model <= names
        configs = {file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.py")}
        assert {f"qil_jax/training/presets/{name}" for name in configs} <= names and len(configs) > 10
        assert {"qil_jax/planning/h100.txtpb", "qil_jax/viewer/viewer.html", "qil_jax/py.typed"} <= names
        assert {name.split("/")[0].partition("-")[0] for name in names} == {"qil_jax"}
        (entries,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
        assert "qil = qil_jax.cli.__main__:program" in entries and "qil-infer = " in entries


def test_it_decomposes_and_evaluates(qil, installed, tmp_path):
    records = scenes(tmp_path / "records", "test", 1)
    shutil.copy(records / "test" / "00000" / "000.png", "picture.png")
    done = qil("decompose", "picture.png", "--out", "results", "--steps", 1, "--layers", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "picture" / "layers.psd").is_file()
    done = qil("evaluate", "layers", "records", "--steps", 1, "--count", 1, "--resolution", SIDE, "--out", "report")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "summary.json").is_file()
    module = "import qil_jax; print(qil_jax.__file__)"
    where = finished([sys.executable, "-c", module], env={**os.environ, "PYTHONPATH": str(installed)})
    assert where.stdout.strip() == str(installed / "qil_jax" / "__init__.py")


def test_it_converts_and_validates(qil, installed):
    model = installed / "qil_jax" / "shipped" / "demonstration"
    assert (done := qil("convert", "to-orbax", model, "converted")).returncode == 0, done.stderr
    assert (done := qil("validate", "converted", "--values")).returncode == 0, done.stderr
    assert "converted is sound" in done.stdout
    assert (done := qil("quantize", model, "small", "--dtype", "int8")).returncode == 0, done.stderr
    shutil.rmtree("small/vae")
    done = qil("validate", "small")
    assert done.returncode == 1 and "vae" in done.stderr


def test_it_checks_presets(qil, tmp_path):
    scenes(tmp_path / "records", "train", 16)
    sets = ("--set", 'data.sources=["records"]', "--set", "validation.every=0")
    done = qil("train", "small/finetune_lora", "--check", *sets)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["records"]
    done = qil("train", "released/finetune_lora", "--check", "--set", "mesh.fsdp=1")
    assert done.returncode == 2 and "must be made first, by these commands in this order" in done.stderr
    assert "\n  qil build-dataset documents --out " in done.stderr and "\n  hf download " in done.stderr
    done = qil("train", "released/finetune_lorra", "--check")
    assert done.returncode == 2 and "one of released/finetune_lora, " in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler for TPUs, is missing")
def test_it_plans(qil, installed):
    config = installed / "qil_jax" / "shipped" / "demonstration" / "transformer" / "config.json"
    size = ("--layers", 1, "--resolution", 320, "--text", 64, "--effort", -1)
    done = qil("plan", "infer", "--topology", "v5e:1x1", "--mesh", "tensor=1", "--transformer", config, *size)
    assert done.returncode == 0, done.stderr
    assert "compiled, not run" in done.stdout
