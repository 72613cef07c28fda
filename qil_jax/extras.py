"""Packages that only some programs need: the extra of this package that brings each, and the refusal without it."""

import importlib.util

from qil_jax.errors import QilError

EXTRA_OF = {
    "tensorflow_datasets": "data",
    "apache_beam": "data",
    "imagehash": "data",
    "scipy": "data",
    "openai": "data",
    "resvg_py": "data",
    "rapidocr": "ocr",
    "onnxruntime": "ocr",
    "matplotlib": "ocr",
    "libtpu": "plan",
    "jax_cuda12_plugin": "cuda",
    "wandb": "track",
    "gradio": "ui",
    "gcsfs": "gcs",
    "pillow_heif": "heic",
    "torch": "parity",
    "diffusers": "parity",
    "transformers": "parity",
    "accelerate": "parity",
}
"""Module to its extra (pyproject.toml)."""


def require(what: str, *modules: str) -> None:
    """Refuse what needs modules that are not installed; imports none of them.

    Args:
      what: the program, option or folder that needs them, as the message begins.
      modules: names of modules, all in EXTRA_OF.

    Raises:
      QilError: if one is not installed; the message names all that are missing and the command that installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(dict.fromkeys(EXTRA_OF[name] for name in missing))
        raise QilError(f"{what} needs {', '.join(missing)}: pip install 'qil_jax[{extras}]'")
