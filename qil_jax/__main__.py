"""`python -m qil_jax VERB ...`: the same as `qil VERB ...`."""

from qil_jax.cli.__main__ import program

if __name__ == "__main__":
    program()
