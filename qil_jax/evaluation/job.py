"""The identity of an evaluation: its settings are written to its folder and must be the same when it is resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from qil_jax.errors import QilError, shown
from qil_jax.files import write_whole
from qil_jax.strict_json import read_json

JOB = "job.json"
"""File of an evaluation's folder that holds its settings."""


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of an evaluation to its folder, or check that a folder to be resumed has the same ones.

    Args:
      settings: all settings that determine the result; they are compared as JSON.

    Raises:
      QilError: naming the settings that differ, or if the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise QilError(f"{folder} is a file: give --out a folder")
    file = folder / JOB
    text = json.dumps(settings, indent=2) + "\n"
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise QilError(f"{folder} holds no evaluation (there is no {JOB}) and is not empty: give another --out")
        write_whole(epath.Path(file), text.encode())
        return
    found = read_json(file, fix="give another --out")
    if not isinstance(found, dict):
        raise QilError(f"{file}: holds no settings of an evaluation; give another --out")
    wanted = json.loads(text)
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        differing = "".join(
            f"\n  {name}: {shown(found.get(name))} there, {shown(wanted.get(name))} here" for name in names
        )
        raise QilError(f"{folder} holds another evaluation: give it another --out, or the same settings:{differing}")
