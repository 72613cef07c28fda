"""Decompose pictures into editable RGBA layers: python infer.py PICTURE... --out DIR [--checkpoint DIR]."""

from qil_jax.inference.__main__ import program

if __name__ == "__main__":
    program()
