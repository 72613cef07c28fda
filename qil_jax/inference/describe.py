"""Reading of the file of `qil decompose --describe`: what single layers show, and where."""

import json
from pathlib import Path

from qil_jax.errors import ProblemsError, QilError
from qil_jax.files import read_file
from qil_jax.layers.descriptions import LayerDescription
from qil_jax.options import fitted
from qil_jax.strict_json import MOST_BYTES, parse

FORM = 'a list from the bottom layer to the top, such as [{}, {"text": "a red kite", "box": [40, 30, 90, 80]}]'


def read_descriptions(file: Path) -> tuple[LayerDescription, ...]:
    """The descriptions of a JSON file, bottom to top: objects with `text` and `box`, both optional.

    Raises:
      ProblemsError: if the file cannot be read, is not of that form, or has a box without area; every problem is named.
    """
    try:
        data = read_file(file, most=MOST_BYTES)
        items = parse(data.decode(json.detect_encoding(data)))  # UTF-8 or 16, with its mark or without
    except OSError as error:
        raise ProblemsError(str(file), [f"cannot be read ({error.strerror}): give {FORM}"]) from error
    except UnicodeDecodeError as error:
        raise ProblemsError(str(file), [f"is no text ({error.reason}): give {FORM}"]) from error
    except QilError as error:
        raise ProblemsError(str(file), [str(error), f"give {FORM}"]) from error
    found = fitted(tuple[LayerDescription, ...], items, where=str(file), fix=f"give {FORM}")
    problems = [
        f"{i}.box: {list(said.box)} has no area: give left, top, right, bottom in pixels of the picture"
        for i, said in enumerate(found)
        if said.box is not None and not (said.box[0] < said.box[2] and said.box[1] < said.box[3])
    ]
    problems += [] if found else [f"it describes no layer: give {FORM}"]
    if problems:
        raise ProblemsError(str(file), problems)
    return found
