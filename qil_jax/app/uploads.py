"""Pictures that clients upload."""

from pathlib import Path

from qil_jax.app.limits import Limits
from qil_jax.inference.images import check_size
from qil_jax.inference.pictures import InputImage
from qil_jax.layers.pictures import HEIF, ImageError, read_bytes, read_picture

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", HEIF)
"""What is decoded, by Pillow's names. Others that it knows start programs, or are rarely pictures."""


def is_upload(path: object, folder: Path) -> bool:
    """Whether a path that a client sent is a file below the folder of uploads; links and `..` are followed."""
    if not isinstance(path, str) or "\0" in path:
        return False
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError):
        return False
    return resolved.is_relative_to(folder.resolve()) and resolved != folder.resolve()


def opened(file: Path, limits: Limits, *, resolution: int) -> InputImage:
    """An upload, decoded after its size is known to be allowed.

    Raises:
      ImageError: if it is no picture of the FORMATS, is too large, or too narrow for a bucket of `resolution`; the
        message has the file's name, not its path.
    """
    name = file.name

    def check(size: tuple[int, int]) -> None:
        width, height = size
        if width * height > limits.pixels:
            raise ImageError(
                f"{name}: {width}x{height} pixels, {limits.pixels:,} at most are taken here; scale it down first"
            )
        check_size(size, name, resolution)

    try:
        size = file.stat().st_size
    except OSError as error:
        raise ImageError(f"{name}: is no longer here; upload it again") from error
    if size > limits.upload_bytes:
        raise ImageError(f"{name}: {size / 2**20:.1f} MB, {limits.megabytes} at most are taken here")
    data = read_bytes(file)
    picture = read_picture(data, name, check, formats=FORMATS)
    return InputImage.of(Path(name), data, picture, keep=True)
