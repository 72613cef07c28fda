"""Now `qil make-scenes`."""

from qil_jax.cli.moved import moved

if __name__ == "__main__":
    moved("make-scenes")
