"""Pictures as documents hold them: files somewhere on a canvas, which are decoded when their layers are made."""

import dataclasses

import numpy as np

from qil_jax.layers.boxed_layer import BoxedLayer, intersection
from qil_jax.layers.filtering import resampled
from qil_jax.layers.pictures import decoded, picture_size

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
"""Pillow's names of the formats that are read: documents hold no others, and some others start programs."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlacedPicture:
    """A picture file on a canvas, not decoded yet.

    Attributes:
      name: name of the layer.
      data: bytes of the file.
      left: x coordinate of its left edge, in pixels of the canvas.
      top: y coordinate of its upper edge.
      size: width and height in pixels of the canvas, to which the picture is resampled; None: those of the file.
      opacity: factor of alpha, in [0, 1].
      is_mirrored: whether left and right are swapped.
      is_upside_down: whether top and bottom are swapped.
    """

    name: str
    data: bytes
    left: int
    top: int
    size: tuple[int, int] | None = None
    opacity: float = 1.0
    is_mirrored: bool = False
    is_upside_down: bool = False

    @property
    def file_size(self) -> tuple[int, int]:
        """Width and height of the file's picture, by its header.

        Raises:
          ImageError: if it is no picture.
        """
        return picture_size(self.data, self.name, formats=FORMATS)

    def layer(self, canvas: tuple[int, int]) -> BoxedLayer:
        """The layer; of a resampled picture only what lies on the canvas, whose width and height are given.

        Raises:
          ImageError: if the file is no picture.
        """
        pixels = np.array(decoded(self.data, self.name, formats=FORMATS))
        if self.opacity != 1:
            pixels[..., 3] = np.rint(pixels[..., 3] * self.opacity)
        pixels = pixels[:: -1 if self.is_upside_down else 1, :: -1 if self.is_mirrored else 1]
        height, width = pixels.shape[:2]
        if self.size in (None, (width, height)):
            return BoxedLayer(pixels=np.ascontiguousarray(pixels), left=self.left, top=self.top, name=self.name)
        box = self.left, self.top, self.left + self.size[0], self.top + self.size[1]
        inside = intersection(box, (0, 0, *canvas))
        if inside is None:
            return BoxedLayer(pixels=np.zeros((1, 1, 4), np.uint8), left=0, top=0, name=self.name)
        across, down = width / self.size[0], height / self.size[1]
        left, top, right, bottom = (edge - start for edge, start in zip(inside, (self.left, self.top) * 2, strict=True))
        part = left * across, top * down, min(float(width), right * across), min(float(height), bottom * down)
        pixels = resampled(pixels, (right - left, bottom - top), part)
        return BoxedLayer(pixels=pixels, left=inside[0], top=inside[1], name=self.name)
