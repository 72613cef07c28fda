"""Results by the program that was compiled, in a JSON file: an interrupted sweep goes on, and a changed program is new."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from etils import epath
from pydantic import TypeAdapter

from qil_jax.errors import QilError
from qil_jax.files import write_whole
from tools.planning.result import Result

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
        if self.file is not None:
            text = json.dumps(dict(sorted(self._found.items())), indent=1)
            write_whole(epath.Path(self.file), f"{text}\n".encode())

    @property
    def names(self) -> list[str]:
        """Names of all results."""
        return list(self._found)


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
