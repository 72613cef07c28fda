"""Decompose pictures into editable RGBA layers, as `qil decompose` does: python infer.py PICTURE... --out DIR."""

from qil_jax.cli.decompose import main
from qil_jax.programs import run_main

if __name__ == "__main__":
    run_main(main)
