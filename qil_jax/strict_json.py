"""The one strict parser of JSON, and the reader of our files of it: no key twice, no nan, no nest without a bottom.

Halves of surrogate pairs pass: a record may hold the name of a file that is no UTF-8, and keeps it without loss.
"""

import json
import math
from collections import Counter
from typing import Any

from qil_jax.errors import QilError, shown
from qil_jax.files import AnyPath, read_file

MOST_BYTES = 100_000_000
"""Maximum size of JSON in bytes, equal to the safetensors library's limit for headers."""
MOST_DEPTH = 400
"""Maximum nesting depth of objects and lists: three for each group within a group, two for each edit of an edit."""


def parse(data: bytes | str, *, depth: int = MOST_DEPTH) -> Any:
    """The value of a JSON text: UTF-8, unique keys, numbers that are finite as floats, at most `depth` levels.

    Raises:
      QilError: if the text is anything else. It gives the reason and the place in the text, and names no file.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        hooks = {"parse_float": _finite, "parse_int": _whole, "parse_constant": _finite}
        value = json.loads(text, object_pairs_hook=_once, **hooks)
    except RecursionError as error:
        raise QilError(f"nested more than {depth} levels deep") from error
    except ValueError as error:
        raise QilError(f"is not JSON as it should be ({error})") from error
    if not _is_shallow(value, depth):
        raise QilError(f"nested more than {depth} levels deep")
    return value


def read_json(file: AnyPath, *, fix: str) -> Any:
    """The value of a JSON file, as `parse` takes it.

    Args:
      file: JSON file of at most `MOST_BYTES`.
      fix: advice at the end of messages.

    Raises:
      OSError: if the file cannot be read.
      QilError: if it is no regular file, larger, or holds anything else.
    """
    data = read_file(file, most=MOST_BYTES)
    try:
        return parse(data)
    except QilError as error:
        raise QilError(f"{file}: {error}; {fix}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"key {shown(next(key for key, count in counts.items() if count > 1))} occurs twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is no finite number")
    return value


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _is_shallow(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return not level
