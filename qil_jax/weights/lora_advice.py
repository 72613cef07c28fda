"""What known LoRAs need that their files do not say: another checkpoint, another sampler, other settings.

Recognised are the names that a file and its metadata bear. Where a LoRA's tensors are known, but others have the same
names and ranks, the advice begins with `if`: it is never a guess.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

BLOCKS = re.compile(r"transformer_blocks\.\d+\.")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
PATH = 5
"""The last parts of a file's path whose names count: those of a downloaded repository and of its folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensors:
    """What is known of a LoRA's tensors.

    Attributes:
      file: name that its program gives to the file; None: any.
      suffix: what ends the names of the first factors.
      prefix: what begins them.
      maps: the linear maps of a block that it changes, all of them; empty if that is not known.
      rank: their rank; None if that is not known.
    """

    file: str | None = None
    suffix: str
    prefix: str = ""
    maps: frozenset[str] = frozenset()
    rank: int | None = None

    def fit(self, file: Path, factors: Iterable[tuple[str, str, int]]) -> bool:
        """Whether a file has such tensors; `factors` are linear map, name of the first factor and rank of each."""
        maps, downs, ranks = zip(*factors, strict=True)
        return (
            self.file in (None, file.name)
            and all(down.startswith(self.prefix) and down.endswith(self.suffix) for down in downs)
            and (not self.maps or {BLOCKS.sub("", name) for name in maps} == self.maps)
            and (self.rank is None or set(ranks) == {self.rank})
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """A LoRA that is known.

    Attributes:
      name: how its makers call it.
      names: pattern of the names of its file, its folder, or its base model.
      tensors: what is known of its tensors, which others have too.
      advice: what it needs.
    """

    name: str
    names: re.Pattern[str]
    tensors: Tensors
    advice: str


KNOWN = (
    Known(
        name="Qwen-Image-Layered-Control-V2",
        names=re.compile(r"layered[-_ ]?control", re.IGNORECASE),
        tensors=Tensors(
            suffix=".lora_A.default.weight",
            maps=frozenset(
                [
                    *(f"attn.{name}" for name in ATTENTION),
                    *(f"{stream}_{name}" for stream in ("img", "txt") for name in ("mlp.net.2", "mod.1")),
                ]
            ),
            rank=64,
        ),
        advice="it belongs on the checkpoint Qwen-Image-Layered-Control of DiffSynth-Studio, not on "
        "Qwen-Image-Layered, and takes out one layer, which a prompt or a brush names: that is not there yet",
    ),
    Known(
        name="Stable-Layers",
        names=re.compile(r"stable[-_ ]?layers", re.IGNORECASE),
        tensors=Tensors(file="adapter_model.safetensors", prefix="base_model.model.", suffix=".lora_A.weight"),
        advice="it needs Heun's sampler, which is not there yet: by Euler's, the one that is, its makers expect "
        "garbled layers. They also ask for 50 steps, guidance 1, resolution 640 and 4 layers",
    ),
)
"""From the makers' model cards and training scripts (DiffSynth-Studio, Stability AI), of which none names its LoRA in
the file."""


def advice_on(file: Path, factors: Iterable[tuple[str, str, int]], texts: Iterable[str] = ()) -> tuple[str, ...]:
    """What is known of a LoRA file, a sentence for each LoRA that it is or may be.

    Args:
      file: its path.
      factors: linear map, name of the first factor, and rank, for each map that it changes.
      texts: what its metadata says, such as the name of its base model.
    """
    named = "\n".join([*file.absolute().parts[-PATH:], *texts])
    is_named = [known for known in KNOWN if known.names.search(named)]
    if is_named:
        return tuple(f"{file}: its names say {known.name}: {known.advice}" for known in is_named)
    factors = tuple(factors)
    alike = [known for known in KNOWN if factors and known.tensors.fit(file, factors)]
    return tuple(f"{file}: if this is {known.name}, whose tensors it has: {known.advice}" for known in alike)
