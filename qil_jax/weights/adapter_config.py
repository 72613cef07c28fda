"""The configuration of a LoRA that diffusers writes into the header of its files: ranks and alphas by module."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Interval

from qil_jax.errors import ProblemsError, shown
from qil_jax.options import read_fields
from qil_jax.weights.strict import parse_object, read_json

CONFIG_KEY = "lora_adapter_metadata"
"""The text of the header that holds the configuration, as JSON."""
PREFIX = "transformer."
"""What each name of the configuration begins with in files of whole pipelines."""
MOST_ALPHA = 1e9
"""Maximum alpha; larger ones make no scale that fp32 can work with."""
Rank = Annotated[int, Ge(1)]
Alpha = Annotated[int | float, Interval(gt=0, le=MOST_ALPHA)]
"""The type of an alpha, which stays an integer where it is one."""
DEFAULT = 8
"""The rank and the alpha of a configuration that states none, as in PEFT."""


class AdapterConfigError(ProblemsError):
    """The configuration in a header cannot be followed."""

    def __init__(self, problems: list[str]):
        super().__init__(CONFIG_KEY, problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Ranks and alphas of a LoRA. A pattern is a module's name or the end of one; `^` asks for the whole name.

    Attributes:
      r: rank of the modules that no pattern names.
      lora_alpha: alpha of the modules that no pattern names.
      rank_pattern: ranks by pattern; the first that fits a module counts.
      alpha_pattern: alphas by pattern.
      use_rslora: whether the scale is alpha over the root of the rank.
      base_model_name_or_path: the model that it was trained on, as PEFT writes it; empty if it does not say.
    """

    r: Rank = DEFAULT
    lora_alpha: Alpha = DEFAULT
    rank_pattern: Mapping[str, Rank] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, Alpha] = dataclasses.field(default_factory=dict)
    use_rslora: bool = False
    base_model_name_or_path: str = ""

    @classmethod
    def parse(cls, text: str, *, where: str) -> "AdapterConfig":
        """Read the configuration from the header's text.

        Raises:
          WeightsError: if the text is no JSON object.
          AdapterConfigError: if values are of the wrong kind, or ask for something other than LoRA.
        """
        values = parse_object(text.encode(), where=f"{where}: {CONFIG_KEY}")
        inside = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
        values = {name: value for name, value in (inside or values).items() if value is not None}
        problems: list[str] = []
        fields = read_fields(cls, values, problems)
        problems += _odd_patterns(fields)
        if values.get("use_dora"):
            problems.append("use_dora is true: DoRA is not read; give a plain LoRA")
        if problems:
            raise AdapterConfigError([f"{where}: {CONFIG_KEY}: {problem}" for problem in problems])
        return cls(**fields)

    @classmethod
    def beside(cls, file: Path) -> "AdapterConfig | None":
        """Read adapter_config.json, which PEFT writes beside a file; None if there is none.

        Raises:
          WeightsError: if it is no JSON object.
          AdapterConfigError: as `parse`.
        """
        config = file.with_name("adapter_config.json")
        return cls.parse(json.dumps(read_json(config)), where=str(config)) if config.is_file() else None

    @classmethod
    def of(cls, ranks: Mapping[str, int], alphas: Mapping[str, int | float]) -> "AdapterConfig":
        """The configuration of given ranks and alphas by module, the most frequent of which need no pattern."""
        rank = Counter(ranks.values()).most_common(1)[0][0]
        alpha = Counter(alphas.values()).most_common(1)[0][0]
        return cls(
            r=rank,
            lora_alpha=alpha,
            rank_pattern={f"^{module}": value for module, value in ranks.items() if value != rank},
            alpha_pattern={f"^{module}": value for module, value in alphas.items() if value != alpha},
        )

    def text(self, modules: list[str]) -> str:
        """The header's text for a file of these modules; diffusers reads the same configuration from it."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value != ""}
        values["target_modules"] = sorted(modules)
        return json.dumps({f"{PREFIX}{name}": value for name, value in values.items()}, sort_keys=True)

    def rank(self, module: str) -> int:
        """The rank of a module."""
        return _first(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """The factor of a module's product of factors."""
        rank = self.rank(module)
        return _first(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def _first(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    return next((value for pattern, value in patterns.items() if _fits(pattern, module)), otherwise)


def _fits(pattern: str, module: str) -> bool:
    if pattern.startswith("^"):
        return pattern[1:] == module
    return f".{module}".endswith(f".{pattern}")


def _odd_patterns(values: Mapping[str, Any]) -> list[str]:
    """The patterns that are no names. None is run as a regular expression, which a file could make endless."""
    return [
        f"{name}: {shown(pattern)} is no name of a module; write the names out"
        for name in ("rank_pattern", "alpha_pattern")
        for pattern in values.get(name, {})
        if not re.fullmatch(r"\^?[\w.]+", pattern)
    ]
