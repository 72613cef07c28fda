"""Now `qil cache-latents`."""

from qil_jax.cli.moved import moved

if __name__ == "__main__":
    moved("cache-latents")
