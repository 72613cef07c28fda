"""The demonstration's configs in a fresh clone: each says what makes what it reads, as tools/demo_training.py does."""

from pathlib import Path

import pytest
from runs import ROOT

from qil_jax import mesh
from qil_jax.cli import train
from qil_jax.programs import called, typed
from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import Inputs
from tools import demo_training

NAMES = [run.name for run in demo_training.RUNS]


@pytest.fixture
def recipe(monkeypatch) -> list[str]:
    """All that tools/demo_training.py calls at its full size, in its order, in folders as the configs name them."""
    calls: list[str] = []

    def call(program: str, *words: object) -> None:
        begin = f"python {program}" if program.endswith(".py") else called(program)
        calls.append(" ".join([begin, *map(str, words)]))

    monkeypatch.setattr(demo_training, "call", call)
    out = Path(demo_training.WRITTEN_FOR)
    whole = demo_training.Recipe(out, 1.0)
    call("fetch-assets", "--out", out / "assets")
    whole.scenes(out / "assets")
    whole.base()
    for run in demo_training.RUNS:
        experiment = load_experiment(run.config)
        if experiment.data.inputs is Inputs.LATENTS:
            whole.latents(experiment, run.config.relative_to(ROOT))
        call("train", run.config.relative_to(ROOT), "--out", out / run.name)
    return [call.removesuffix(" --mesh data=2") for call in calls]


@pytest.fixture(autouse=True)
def fresh_clone(tmp_path, monkeypatch) -> None:
    """A folder without any of it, and one device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mesh, "make_mesh", lambda shape: mesh.single_device_mesh())


def commands(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a config asks for."""
    capsys.readouterr()
    assert train.trained([str(demo_training.CONFIGS / f"{name}.py")]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("error: build/demo_training/") and "must be made first, by these commands" in first
    return [line.strip() for line in rest]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_says_what_makes_its_inputs(name, recipe, capsys):
    """Followed to its end, the advice is the recipe as far as the run itself."""
    asked = commands(name, capsys)
    assert [call for call in asked if call not in recipe] == []
    experiment = load_experiment(demo_training.CONFIGS / f"{name}.py")
    for made in experiment.made_by:
        command = typed(made.command)
        if command in asked:
            after = asked[asked.index(command) :]
            needed = {typed(other.command) for other in experiment.made_by if other.folder in made.needs}
            assert needed.isdisjoint(after) and needed <= set(asked), made
    assert sorted(call for call in asked if f"{called('train')} " in call) == sorted(
        f"{called('train')} configs/demo/{before}.py --out build/demo_training/{before}"
        for before in NAMES[: NAMES.index(name)]
    )


def test_what_is_there_is_not_made_again(capsys):
    out = Path(demo_training.WRITTEN_FOR)
    for folder in ("latents_grouped", "base", "rgba_vae/checkpoint"):
        (out / folder).mkdir(parents=True)
    (only,) = commands("stage2_text_to_layers", capsys)
    where = "configs/demo/stage1_text_to_rgba.py --out build/demo_training/stage1_text_to_rgba"
    assert only == f"{called('train')} {where}"
