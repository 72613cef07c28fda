"""LayeredImage: the noun that data, inference, evaluation and export share."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayeredImage:
    """Layers on one canvas, bottom to top: 8-bit RGBA with straight (not premultiplied) alpha.

    Raises:
      ValueError: listing everything that does not fit.
    """

    layers: UInt8[np.ndarray, "l y x 4"]
    names: tuple[str, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Refuse what is no layered image, all problems in one ValueError."""
        problems = []
        if self.layers.dtype != np.uint8:
            problems.append(f"layers have dtype {self.layers.dtype}: convert them to uint8")
        if self.layers.ndim != 4 or self.layers.shape[-1] != 4:
            problems.append(f"layers have shape {self.layers.shape}: they must be (layers, height, width, 4)")
        elif 0 in self.layers.shape:
            problems.append(f"layers have shape {self.layers.shape}: at least one layer and one pixel are needed")
        if len(self.names) != len(self.layers):
            problems.append(f"{len(self.names)} names for {len(self.layers)} layers: give one each")
        if problems:
            raise ValueError("not a layered image:\n  " + "\n  ".join(problems))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the canvas in pixels."""
        return self.layers.shape[2], self.layers.shape[1]

    def composite(self) -> Float[np.ndarray, "y x 4"]:
        """All layers alpha-blended in order: straight RGBA in [0, 1], in double precision.

        C_i = a_i RGB_i + (1 - a_i) C_{i-1} on premultiplied colour (paper.md 2.6). Colour is 0 where alpha is 0.
        """
        colour = np.zeros((*self.layers.shape[1:3], 3))
        alpha = np.zeros((*self.layers.shape[1:3], 1))
        for layer in self.layers:
            straight = layer.astype(np.float64) / 255
            over = straight[..., 3:]
            colour = over * straight[..., :3] + (1 - over) * colour
            alpha = over + (1 - over) * alpha
        straight_colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
        return np.concatenate([straight_colour, alpha], axis=-1)

    def composite_8bit(self) -> UInt8[np.ndarray, "y x 4"]:
        """`composite` rounded once, at the end, to 8 bits."""
        return np.round(self.composite() * 255).astype(np.uint8)
