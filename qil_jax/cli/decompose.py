"""Decompose pictures into editable RGBA layers: qil decompose PICTURE... --out DIR [--checkpoint DIR]."""

from qil_jax.inference.__main__ import main

__all__ = ["main"]
