"""What one client may ask of the app. This module imports nothing heavy."""

import dataclasses
from typing import Annotated

MOST_STEPS = 100
"""The most Euler steps of a decomposition."""
MOST_DEPTH = 3
"""The most levels of a decomposition."""
LONGEST_PROMPT = 4000
"""The most characters of a prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that keep the app's memory and disk small whoever calls.

    Attributes:
      pixels: number of pixels of an upload.
      megabytes: size of an upload in MiB.
      queue: number of calls that wait; further ones are refused.
      minutes: time for which uploads and results are kept.
      disk: size of all uploads and results together in MiB.
      work: work of a call, in calls with the checkpoint's defaults.
      layer_pixels: number of pixels of all layers of a result together.
    """

    pixels: int = 25_000_000
    megabytes: int = 20
    queue: int = 32
    minutes: int = 60
    disk: int = 2048
    work: int = 50
    layer_pixels: int = 100_000_000

    @property
    def upload_bytes(self) -> int:
        """Size of an upload in bytes."""
        return self.megabytes * 2**20

    def problems(self) -> list[str]:
        """One message for each limit that allows nothing."""
        from annotated_types import Ge

        from qil_jax.options import value_problems

        named = {"--max-pixels": self.pixels, "--max-megabytes": self.megabytes, "--max-work": self.work}
        named |= {"--max-layer-pixels": self.layer_pixels}
        named |= {"--queue": self.queue, "--keep-minutes": self.minutes}
        found = [
            problem for name, value in named.items() for problem in value_problems(name, value, Annotated[int, Ge(1)])
        ]
        least = Ge(max(1, self.megabytes + 1))
        return found + value_problems("--disk-megabytes", self.disk, Annotated[int, least])
