"""Write docs/api.md, the public interface of the package, from its docstrings.

python tools/write_api.py            writes the page
python tools/write_api.py --check    returns 2 if the page is not what would be written
"""

import re
from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.errors import QilError
from qil_jax.programs import run_main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """\
# The public interface

Written by `python tools/write_api.py` from the docstrings; do not edit by hand. Shapes are those of
[jaxtyping](https://docs.kidger.site/jaxtyping/): `Float[Array, "b t c"]` is a floating-point array of three axes, and a
letter stands for one size throughout a signature. Every error that a caller can cause is a `qil_jax.errors.QilError`.
"""
SECTIONS = {
    "Pictures to layers": (
        "inference.pipeline",
        "inference.request",
        "layers.layered_image",
        "layers.layer_tree",
        "export.result",
    ),
    "Editing": (
        "editing.stack",
        "editing.layer_operations",
        "editing.stack_operations",
        "editing.script",
        "editing.history",
        "export.edited",
    ),
    "Viewer": ("viewer.page", "viewer.entry", "viewer.stored"),
    "Checkpoints": ("weights.load", "weights.lora", "weights.structure", "weights.convert"),
    "Networks": ("models.vld_mmdit", "models.rgba_vae", "models.qwen2_5_vl"),
    "Captions": ("encoders.captioner", "encoders.generation", "models.decoding"),
    "Sampling": ("flow.schedule", "flow.guidance", "flow.sampler"),
    "Devices": ("mesh.devices", "mesh.rules", "kernels.plan", "kernels.attend"),
    "Data": ("records.record", "records.sources", "scenes.scene", "loader.config", "loader.tasks", "loader.loader"),
    "Training": ("training.experiment", "training.optimiser", "flow.loss", "training.loop"),
    "Evaluation": ("evaluation.layers", "evaluation.reconstruction"),
    "Errors": ("errors",),
}
"""Heading to the modules whose public names stand under it."""
STYLE = {
    "heading_level": 3,
    "line_length": 100,
    "members_order": "source",
    "show_signature_annotations": True,
    "summary": False,
    "show_if_no_docstring": False,
    "inherited_members": False,
}

LINK = re.compile(r"\[([^\]\[]*)\]\(#[^)]*\)")
"""References within a page of the whole package, most of which this page does not hold."""


def page() -> str:
    """The text of docs/api.md."""
    import griffe
    from griffe2md import ConfigDict, default_config, render_object_docs

    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser="google")
    package = loader.load("qil_jax")
    parts = [INTRODUCTION]
    for heading, modules in SECTIONS.items():
        parts.append(f"## {heading}\n")
        for module in modules:
            rendered = render_object_docs(package[module], ConfigDict(**{**default_config, **STYLE}))  # pyright: ignore
            plain = LINK.sub(r"\1", rendered.strip())
            parts.append("\n".join(line.rstrip() for line in plain.splitlines()) + "\n")
    return "\n".join(parts)


def main(argv: list[str]) -> int:
    """Write the page, or compare it with what is there."""
    parser = Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    arguments = parser.parse_args(argv)
    text = page()
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        raise QilError(f"{PAGE.relative_to(ROOT)} is not what the docstrings say: run python tools/write_api.py")
    return 0


if __name__ == "__main__":
    run_main(main)
