"""Default options of a checkpoint, read from `qil.json` beside model_index.json, or else those of the release."""

import dataclasses
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MultipleOf

from qil_jax.choices import MAX_LAYERS, MULTIPLE, RESOLUTION, OutputSize
from qil_jax.errors import ProblemsError, QilError
from qil_jax.options import Number, Text, read_fields
from qil_jax.strict_json import read_json

FILE = "qil.json"
Layers = Annotated[int, Ge(1)]
Resolution = Annotated[int, Ge(MULTIPLE), MultipleOf(MULTIPLE)]
"""The type of the side of a size bucket, in pixels."""
Steps = Annotated[int, Ge(1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """Values of options that neither the request nor the command line sets; the field defaults are the release's.

    Attributes:
      layers: number of layers per picture.
      resolution: side of the size bucket in pixels, a multiple of 32.
      steps: number of Euler steps.
      guidance: scale of classifier-free guidance; 1 switches it off.
      output_size: size at which layers are written.
      about: one line that describes the checkpoint and its limitations.
    """

    layers: Layers = 4
    resolution: Resolution = RESOLUTION
    steps: Steps = 50
    guidance: Number = 4.0
    output_size: OutputSize = OutputSize.MODEL
    about: Text = ""

    @property
    def auto_layers(self) -> int:
        """Number of layers to make where superfluous ones are then taken out."""
        return min(2 * self.layers, MAX_LAYERS)

    @classmethod
    def of(cls, checkpoint: Path) -> "Defaults":
        """Read the defaults of a checkpoint.

        Raises:
          QilError: if the file is not a JSON object; the message names the file.
          ProblemsError: if entries are unknown or invalid; the message names each of them.
        """
        file = checkpoint / FILE
        if not file.is_file():
            return cls()
        values = read_json(file, fix="mend it, or take it away for the release's")
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict):
            raise QilError(f"{file}: must be an object with {', '.join(names)}")
        problems = [f"'{name}' is none of {', '.join(names)}" for name in values if name not in names]
        found = read_fields(cls, values, problems)
        if problems:
            raise ProblemsError(str(file), problems)
        return cls(**found)
