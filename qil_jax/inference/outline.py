"""What shapes and prompts a picture's programs depend on, known before the picture is decoded."""

import dataclasses

from qil_jax.inference.images import bucket_size
from qil_jax.inference.request import ResolvedPicture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """The part of a request that determines compiled programs, hidden states and noise levels.

    Attributes:
      size: width and height in pixels at which the model sees the picture.
      layers: number of layers.
      prompt: caption of the picture.
      negative_prompt: prompt of the unconditional pass; None: no guidance.
    """

    size: tuple[int, int]
    layers: int
    prompt: str
    negative_prompt: str | None

    @classmethod
    def of(cls, size: tuple[int, int], options: ResolvedPicture, prompt: str) -> "Outline":
        """The outline of a picture whose file has `size`, width and height in pixels."""
        return cls(
            size=bucket_size(*size, options.resolution),
            layers=options.layers,
            prompt=prompt,
            negative_prompt=options.negative_prompt,
        )

    @property
    def prompts(self) -> list[str]:
        """The prompt, and the negative prompt if there is one."""
        return [self.prompt] if self.negative_prompt is None else [self.prompt, self.negative_prompt]
