"""Decompose pictures into editable RGBA layers: python infer.py PICTURE... --out DIR [--checkpoint DIR]."""

import sys

from qil_jax.inference.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
