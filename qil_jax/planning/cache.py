"""Results in a JSON file, by the program that was compiled: an interrupted sweep goes on where it was."""

import dataclasses
import hashlib
import json
from collections.abc import Container
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from etils import epath
from pydantic import TypeAdapter

from qil_jax.errors import QilError
from qil_jax.files import write_whole
from qil_jax.planning.compiling import compiled
from qil_jax.planning.result import Result, Subject, analysed

RESULT: TypeAdapter[Result] = TypeAdapter(Result)
COMPILERS = ("jaxlib", "libtpu")
"""Packages whose version decides what is compiled."""


class Results:
    """Results in a file, which is written whole after each new one."""

    def __init__(self, file: Path | None):
        """Read the file if there is one; None: results are kept in memory only.

        Raises:
          QilError: if the file does not hold results.
        """
        self.file = file
        self._found: dict[str, dict[str, Any]] = {}
        if file is not None and file.is_file():
            try:
                self._found = json.loads(file.read_text(encoding="utf-8"))
                for entry in self._found.values():
                    RESULT.validate_python(entry["result"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise QilError(
                    f"{file}: does not hold results of plans ({error}): remove it, or give another"
                ) from error

    def get(self, name: str, program: str | None = None) -> Result | None:
        """The result of this name; None if there is none, or if it is that of another program."""
        entry = self._found.get(name)
        if entry is None or (program is not None and entry["program"] != program):
            return None
        return RESULT.validate_python(entry["result"])

    def put(self, name: str, program: str, result: Result) -> None:
        """Keep a result."""
        self._found[name] = {"program": program, "result": RESULT.dump_python(result, mode="json")}
        self._write()

    def keep(self, names: Container[str]) -> None:
        """Drop all results of other names."""
        self._found = {name: entry for name, entry in self._found.items() if name in names}
        self._write()

    def _write(self) -> None:
        if self.file is not None:
            lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(self._found.items())]
            write_whole(epath.Path(self.file), ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def planned(lowered: jax.stages.Lowered, subject: Subject, *, name: str, effort: float, kept: Results | None) -> Result:
    """The result of a program: that of the same program if it is kept, or else a new one, which is then kept.

    Args:
      lowered: program for absent devices.
      subject: what is compiled.
      name: name of the result.
      effort: effort of the compiler; below 0 only memory is read.
      kept: earlier results.
    """
    about = dataclasses.asdict(subject)
    program = program_key(lowered, effort=effort, **about)
    found = None if kept is None else kept.get(name, program)
    if found is not None:
        return found
    result = analysed(compiled(lowered, effort=effort), subject, memory_only=effort < 0)
    if kept is not None:
        kept.put(name, program, result)
    return result


def program_key(lowered: Any, **context: Any) -> str:
    """A fingerprint of a lowered program, of the compiler's version, and of what else decides the result."""
    versions = {name: version(name) for name in COMPILERS}
    about = json.dumps([versions, context], sort_keys=True, default=str)
    return hashlib.sha256((about + lowered.as_text()).encode()).hexdigest()[:24]


def version(package: str) -> str:
    """The version of an installed package; "none" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
