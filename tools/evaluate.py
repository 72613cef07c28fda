"""`qil evaluate` for people who work in a clone."""

from qil_jax.cli.evaluate import main
from qil_jax.programs import run_main

if __name__ == "__main__":
    run_main(main)
