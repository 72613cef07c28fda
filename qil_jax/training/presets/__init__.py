"""The experiments of configs/, which come with the package: each by its name there, such as released/finetune_lora."""

import difflib
from importlib.resources import files
from pathlib import Path

from qil_jax.training.experiment import ExperimentError

NEAREST = 3
"""Maximum number of names that a message suggests."""


def presets_folder() -> Path:
    """The folder configs/: a link in a clone, a copy in a wheel."""
    return Path(str(files(__name__) / "configs"))


def preset_names() -> list[str]:
    """Names of all presets: paths in the folder without their suffix."""
    folder = presets_folder()
    there = (file for file in folder.glob("*/*.py") if "\ndef config()" in file.read_text(encoding="utf-8"))
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in there)


def config_file(named: Path) -> Path:
    """The file of a config: a path, or the name of a preset, which may begin with configs/ and end with .py.

    Raises:
      ExperimentError: if there is neither; the message suggests the nearest names.
    """
    if named.is_file():
        return named
    name, names = named.as_posix().removeprefix("configs/").removesuffix(".py"), preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, NEAREST, cutoff=0.5) or names
        raise ExperimentError(f"{named}: no such file, and no preset: give a file, or one of {', '.join(near)}")
    return presets_folder() / f"{name}.py"
