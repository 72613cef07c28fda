"""Make a trained demonstration checkpoint what the package ships: bf16, with its defaults in qil.json.

python tools/ship.py CHECKPOINT [--overwrite]     into qil_jax/shipped/demonstration; evaluate it first (docs/demo.md)
"""

import dataclasses
import json
import shutil
from pathlib import Path

from qil_jax.choices import OutputSize
from qil_jax.command_line import Parser
from qil_jax.errors import QilError, say
from qil_jax.files import whole_folder
from qil_jax.inference.defaults import FILE, Defaults
from qil_jax.programs import run_main
from qil_jax.shipped import shipped_checkpoint
from qil_jax.strict_json import read_json

MOST_BYTES = 40_000_000
SHIFT = 3.0
"""Shift of the sampler's noise levels, that of stage 3 in training."""
DEFAULTS = Defaults(
    layers=3,
    resolution=64,
    steps=12,
    guidance=1.0,
    output_size=OutputSize.INPUT,
    about=(
        "Using the small model that comes with the package: it takes simple 64-pixel scenes apart into 2 to 5 layers, "
        "to show what the code does. It is not Qwen-Image-Layered; give --checkpoint for that."
    ),
)


def ship(checkpoint: Path, destination: Path) -> int:
    """Write the checkpoint into the folder atomically, and return its size in bytes.

    Raises:
      QilError: if the checkpoint is not sound, or too large to be shipped.
    """
    from qil_jax.weights import Checkpoint

    Checkpoint(checkpoint).require_sound()
    with whole_folder(destination, overwrite=True) as draft:
        size = _fill(draft, checkpoint)
        if size > MOST_BYTES:
            raise QilError(f"{checkpoint}: {size / 1e6:.1f} MB in bf16, at most {MOST_BYTES / 1e6:.0f} MB are shipped")
    return size


def _fill(draft: Path, checkpoint: Path) -> int:
    import ml_dtypes
    from safetensors.numpy import save_file

    from qil_jax.weights import Checkpoint, Component
    from qil_jax.weights.safetensors_io import TensorReader, read_headers, weight_files

    shutil.copytree(checkpoint, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    for component in Component:
        files = weight_files(checkpoint / component)
        reader = TensorReader(read_headers(files))
        tensors = {name: reader[name].astype(ml_dtypes.bfloat16) for name in sorted(reader.tensors)}
        save_file(tensors, draft / component / files[0].name, metadata={"format": "pt"})
        (draft / component / files[0].name).chmod(0o644)
    scheduler = draft / "scheduler" / "scheduler_config.json"
    values = {**json.loads(scheduler.read_text()), "use_dynamic_shifting": False, "shift": SHIFT}
    scheduler.write_text(json.dumps(values, indent=2) + "\n")
    (draft / FILE).write_text(json.dumps(dataclasses.asdict(DEFAULTS), indent=2) + "\n")
    Checkpoint(draft).require_sound()
    return sum(file.stat().st_size for file in draft.rglob("*") if file.is_file())


def main(argv: list[str]) -> int:
    """Ship the checkpoint; returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="what a run left, in the released layout")
    parser.add_argument("--overwrite", action="store_true", help="replace what is shipped now")
    arguments = parser.parse_args(argv)
    from qil_jax.training.start import ORIGIN

    destination = shipped_checkpoint()
    if destination.exists() and not arguments.overwrite:
        parser.error(f"{destination} exists: give --overwrite to replace what is shipped now")
    size = ship(arguments.checkpoint, destination)
    origin = read_json(destination / ORIGIN, fix="remove it") if (destination / ORIGIN).is_file() else "not of a run"
    say(f"{destination}: {size / 1e6:.1f} MB, trained by {origin}")
    return 0


if __name__ == "__main__":
    run_main(main)
