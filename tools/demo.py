"""Decompose the pictures of examples/ with the model that the package ships (make demo).

python tools/demo.py [--out build/demo] [--checkpoint FOLDER]
"""

import sys
from pathlib import Path

from rich.console import Console

from qil_jax.command_line import Parser
from qil_jax.errors import say
from qil_jax.programs import called, run_main
from qil_jax.terminal import Table

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = {
    "scene": "a generated test scene; scene_truth.png shows its true layers",
    "unseen": "things of a kind that the model has not seen",
    "chelsea": "a photograph: far from what a model this small can do",
}


def main(argv: list[str]) -> int:
    """Write a result folder for each picture, and print their contents."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder of the results (default %(default)s)"
    )
    parser.add_argument("--checkpoint", type=Path, help="instead of the shipped model")
    arguments = parser.parse_args(argv)
    decompose(arguments.out, arguments.checkpoint)
    return 0


def decompose(out: Path, checkpoint: Path | None) -> None:
    """Decompose the example pictures.

    Raises:
      QilError: before any compute, if the path of a result is occupied by something else.
    """
    import numpy as np
    from PIL import Image

    from qil_jax.choices import Edges
    from qil_jax.export.result import require_replaceable, write_result
    from qil_jax.export.sheet import write_sheet
    from qil_jax.inference.pipeline import Pipeline
    from qil_jax.inference.request import Request
    from qil_jax.layers.layered_image import LayeredImage
    from qil_jax.layers.refinement import at_size

    for name in PICTURES:
        require_replaceable(out / name)
    pipeline = Pipeline.load(checkpoint)
    say(pipeline.checkpoint.defaults.about)
    requests = [Request(image=Image.open(EXAMPLES / f"{name}.png").convert("RGBA")) for name in PICTURES]
    table = Table("picture", "what it is", "PSNR of the layers put together")
    for name, made in zip(PICTURES, pipeline.decompose(requests), strict=True):
        record = {"input": f"{name}.png", "settings": "the checkpoint's own"}
        picture = np.asarray(made.request.image)
        layered, report = at_size(made.layered, picture, Edges.REFINED)
        record |= {} if report is None else {"refinement": report.report()}
        psnr = write_result(out / name, layered, picture, record, overwrite=True)
        table.add_row(name, PICTURES[name], f"{psnr:.1f} dB")
        if (EXAMPLES / name).is_dir():
            (out / f"{name}_truth.png").unlink(missing_ok=True)
            write_sheet(LayeredImage.load(EXAMPLES / name), picture, out / f"{name}_truth.png")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(
        f"Each folder in {out} holds PNGs, layers.psd for Photoshop, GIMP or Krita, and sheet.png.\n"
        f"Next, your own picture: {called('decompose')} PICTURE --out results",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_main(main)
