"""Now `qil show-batch`."""

from qil_jax.cli.moved import moved

if __name__ == "__main__":
    moved("show-batch")
