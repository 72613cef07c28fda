"""Train a stage, or resume its run, as `qil train` does: python train.py CONFIG --out RUN [--set NAME=VALUE ...]."""

from qil_jax.cli.train import main
from qil_jax.programs import run_main

if __name__ == "__main__":
    run_main(main)
