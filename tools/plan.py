"""`qil plan` for people who work in a clone."""

from qil_jax.cli.plan import main
from qil_jax.programs import run_main

if __name__ == "__main__":
    run_main(main)
