"""Default options of a checkpoint, read from `qil.json` beside model_index.json, or else those of the release."""

import dataclasses
from pathlib import Path

from qil_jax.choices import MAX_LAYERS, RESOLUTION, OutputSize
from qil_jax.errors import ProblemsError, QilError, shown
from qil_jax.strict_json import read_json

FILE = "qil.json"


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

    layers: int = 4
    resolution: int = RESOLUTION
    steps: int = 50
    guidance: float = 4.0
    output_size: OutputSize = OutputSize.MODEL
    about: str = ""

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
        kinds: dict[str, type] = {"layers": int, "resolution": int, "steps": int, "guidance": float}
        kinds |= {"output_size": OutputSize, "about": str}
        if not isinstance(values, dict):
            raise QilError(f"{file}: must be an object with {', '.join(kinds)}")
        problems = [f"'{name}' is none of {', '.join(kinds)}" for name in values if name not in kinds]
        for name, kind in kinds.items():
            value = values.get(name, getattr(cls, name))
            if kind is OutputSize:
                fits, wanted = value in tuple(OutputSize), f"one of {', '.join(OutputSize)}"
            else:
                fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
                wanted = kind.__name__
            problems += [] if fits else [f"'{name}' is {shown(value)}, which is not {wanted}"]
        if problems:
            raise ProblemsError(str(file), problems)
        return cls(**{name: kinds[name](value) for name, value in values.items()})
