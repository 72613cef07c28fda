"""Export of a layered image as one PNG per layer."""

from pathlib import Path

from PIL import Image

from qil_jax.export.names import safe_name
from qil_jax.layers.layered_image import LayeredImage


def write_pngs(layered: LayeredImage, folder: Path) -> list[Path]:
    """Write straight RGBA PNGs of the whole canvas, bottom first: `01_name.png`, `02_name.png`, ...

    Raises:
      FileExistsError: if one of these files exists.
    """
    files = []
    for i, (layer, name) in enumerate(zip(layered.layers, layered.names, strict=True), start=1):
        file = folder / f"{i:02d}_{safe_name(name)}.png"
        with file.open("xb") as stream:
            Image.fromarray(layer, "RGBA").save(stream, "PNG")
        files.append(file)
    return files
