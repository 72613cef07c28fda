"""How text is written, as a checkpoint's generation_config.json says."""

import dataclasses
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Interval

from qil_jax.models.config import Index, Indexes, Size, require_none
from qil_jax.options import Number, read_fields
from qil_jax.weights.strict import read_json

FILE = "text_encoder/generation_config.json"
COLDEST = 1e-3
"""A temperature below which the most likely token is drawn in any case."""
FIX = "copy it from the release"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """How text is written, with the names of generation_config.json.

    Attributes:
      max_new_tokens: largest number of ids of a text; at least 1.
      repetition_penalty: divisor of the logits of tokens that are in the prompt or were written; 1 has no effect.
      do_sample: whether tokens are drawn, rather than the most likely one taken each time.
      temperature: divisor of the logits of tokens that are drawn.
      top_p: probability that the tokens among which is drawn have together, at least.
      top_k: number of the most likely tokens among which is drawn; 0: all.
      eos_token_id: ids that end a text.
      pad_token_id: id with which prompts are padded, to no effect.
    """

    max_new_tokens: Size = 512
    repetition_penalty: Annotated[Number, Gt(0)] = 1.0
    do_sample: bool = False
    temperature: Annotated[Number, Ge(0)] = 1.0
    top_p: Annotated[Number, Interval(ge=0, le=1)] = 1.0
    top_k: Index = 50
    eos_token_id: Indexes = ()
    pad_token_id: Index = 0

    def __post_init__(self):
        """Check the values.

        Raises:
          ConfigError: if one is out of range.
        """
        problems: list[str] = []
        read_fields(type(self), vars(self), problems)
        require_none(problems, "generation")

    @classmethod
    def of(cls, checkpoint: Path) -> "Generation":
        """How a checkpoint asks for text to be written, by its text_encoder/generation_config.json.

        `max_new_tokens` is that of the released pipeline, whatever the file says.

        Raises:
          WeightsError: if the file is missing, or holds no JSON object.
          ConfigError: if it lacks `eos_token_id`, or a value is of a wrong type or out of range.
        """
        file = checkpoint / FILE
        values = {key: value for key, value in read_json(file, fix=FIX).items() if value is not None}
        values.pop("max_new_tokens", None)
        if isinstance(values.get("eos_token_id"), int):
            values["eos_token_id"] = [values["eos_token_id"]]
        problems: list[str] = [] if "eos_token_id" in values else [f"'eos_token_id' is missing: {FIX}"]
        found = read_fields(cls, values, problems)
        require_none(problems, str(file))
        return cls(**found)

    @property
    def is_sampled(self) -> bool:
        """Whether seeds matter: `do_sample`, unless the most likely token is drawn in any case, as in the release."""
        return self.do_sample and self.top_k != 1 and self.temperature > COLDEST
