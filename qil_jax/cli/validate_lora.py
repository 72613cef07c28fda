"""What `qil validate` does with LoRA files."""

import re
from collections.abc import Collection
from pathlib import Path

from qil_jax.cli.validate_checkpoint import made_by
from qil_jax.errors import complain, message, say
from qil_jax.terminal import Table, console
from qil_jax.weights import Checkpoint, Component, LoRAError, read_lora
from qil_jax.weights.lora_header import LoRAHeader, read_lora_header
from qil_jax.weights.released import CONFIGS
from qil_jax.weights.tables import table_of


def validate_lora(file: Path, base: Path | None) -> int:
    """Check names, shapes and values of a LoRA file; returns 0 if it is sound, 1 if not.

    Args:
      file: the LoRA.
      base: checkpoint whose transformer it must fit; None: the released structure.
    """
    part = Component.TRANSFORMER
    entries = table_of(part, CONFIGS[part]) if base is None else Checkpoint(base)[part].table
    try:
        header = read_lora_header(file, entries)
        read_lora(file, entries)
    except LoRAError as error:
        hint = "" if base else "\n(checked against the released structure; --base CHECKPOINT checks against another)"
        complain(f"{error}{hint}")
        return 1
    shown = console()
    shown.print(contents(header))
    shown.print(message(made_by(header.origin)))
    for line in header.advice:
        say(f"note: {line}")
    shown.print(message(f"{file} is sound and fits {base or 'the released transformer'}"))
    return 0


def contents(header: LoRAHeader) -> Table:
    """Table of the linear maps that a LoRA changes, a row for those that differ in their block only."""
    groups: dict[str, list] = {}
    for module, stored in header.modules.items():
        groups.setdefault(re.sub(r"^transformer_blocks\.\d+\.", "transformer_blocks.*.", module), []).append(stored)
    table = Table("linear maps", "number", "ranks", "scales", "layout", "dtypes")
    for kind, found in groups.items():
        table.add_row(
            kind,
            str(len(found)),
            _distinct({stored.rank for stored in found}),
            _distinct({round(stored.scale, 6) for stored in found}),
            _distinct({stored.layout.value for stored in found}),
            _distinct({stored.dtype for stored in found}),
        )
    return table


def _distinct(values: Collection) -> str:
    return ", ".join(map(str, sorted(values)))
