"""Now `qil fetch-assets`."""

from qil_jax.cli.moved import moved

if __name__ == "__main__":
    moved("fetch-assets")
