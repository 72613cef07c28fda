"""Reading of the file of `infer.py --describe`: what single layers show, and where."""

import json
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from qil_jax.errors import ProblemsError
from qil_jax.layers.descriptions import LayerDescription

ADAPTER = TypeAdapter(tuple[with_config(ConfigDict(extra="forbid"))(LayerDescription), ...])
FORM = 'a list from the bottom layer to the top, such as [{}, {"text": "a red kite", "box": [40, 30, 90, 80]}]'


def read_descriptions(file: Path) -> tuple[LayerDescription, ...]:
    """The descriptions of a JSON file, bottom to top: objects with `text` and `box`, both optional.

    Raises:
      ProblemsError: if the file cannot be read, is not of that form, or has a box without area; every problem is named.
    """
    try:
        data = file.read_bytes()
        found = ADAPTER.validate_json(data.decode(json.detect_encoding(data)))  # UTF-8 or 16, with its mark or without
    except OSError as error:
        raise ProblemsError(str(file), [f"cannot be read ({error.strerror}): give {FORM}"]) from error
    except UnicodeDecodeError as error:
        raise ProblemsError(str(file), [f"is no text ({error.reason}): give {FORM}"]) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ProblemsError(str(file), [*problems, f"give {FORM}"]) from error
    problems = [
        f"{i}.box: {list(said.box)} has no area: give left, top, right, bottom in pixels of the picture"
        for i, said in enumerate(found)
        if said.box is not None and not (said.box[0] < said.box[2] and said.box[1] < said.box[3])
    ]
    problems += [] if found else [f"it describes no layer: give {FORM}"]
    if problems:
        raise ProblemsError(str(file), problems)
    return found
