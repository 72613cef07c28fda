"""Settings as JSON, and fingerprints that identify the settings under which stored results were made."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any


def to_json(value: Any) -> Any:
    """A config as JSON: dataclasses and mappings become objects, sequences lists, enums their values, paths strings.

    Raises:
      TypeError: if the config holds a value that JSON cannot represent.
    """
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def fingerprint(config: Any, data: bytes = b"") -> str:
    """16 hexadecimal digits of the SHA-256 of a config's JSON, with sorted keys, followed by `data`."""
    text = json.dumps(to_json(config), sort_keys=True)
    return hashlib.sha256(text.encode() + data).hexdigest()[:16]
