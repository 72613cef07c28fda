"""Files that appear whole or not at all, and pictures as bytes."""

import io
import uuid

from etils import epath
from PIL import Image


def write_whole(file: epath.Path, data: bytes) -> None:
    """Write a file, and its folder if needed; whoever looks sees all of it or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.parent / f".{file.name}.{uuid.uuid4().hex}"
    unfinished.write_bytes(data)
    unfinished.replace(file)


def png_bytes(image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> bytes:
    """A picture, made no larger than `side`, as PNG without its profile and other facts."""
    image.thumbnail((side, side), resampling)
    image.info.clear()
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
