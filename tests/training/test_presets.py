"""Presets by name: every config of configs/ that is an experiment, from any folder, as the package carries them."""

from pathlib import Path

import pytest
from runs import ROOT

from qil_jax.training.config_file import load_experiment
from qil_jax.training.presets import config_file, preset_names, presets_folder


def test_the_package_carries_all_of_configs():
    assert presets_folder().resolve() == ROOT / "configs"
    files = [file for file in (ROOT / "configs").rglob("*.py") if "def config(" in file.read_text()]
    assert preset_names() == sorted(file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in files)
    assert len(files) > 10 and "released/common" not in preset_names()


@pytest.mark.parametrize("name", ["released/finetune_lora", "demo/stage1_text_to_rgba", "small/finetune_lora"])
def test_a_name_and_a_path_give_one_experiment(name, tmp_path, monkeypatch):
    """Configs that import one another included, in a folder that has no configs/."""
    path = ROOT / "configs" / f"{name}.py"
    monkeypatch.chdir(tmp_path)
    expected = load_experiment(path)
    for said in (name, f"{name}.py", f"configs/{name}", f"configs/{name}.py"):
        assert load_experiment(Path(said)) == expected


def test_a_file_comes_before_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Path("released/finetune.py")
    own.parent.mkdir()
    own.touch()
    assert config_file(own) == own and config_file(Path("released/finetune")).is_relative_to(presets_folder())
