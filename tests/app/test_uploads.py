"""Uploads: which paths are a client's, and which files are pictures that the app takes."""

import io

import numpy as np
import pytest
from PIL import Image

from qil_jax.app.limits import Limits
from qil_jax.app.uploads import is_upload, opened
from qil_jax.layers.pictures import ImageError

LIMITS = Limits(pixels=10_000, megabytes=1)


def encoded(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def test_only_what_lies_below_the_folder_is_an_upload(tmp_path):
    folder, outside = tmp_path / "work", tmp_path / "secret.png"
    (folder / "a").mkdir(parents=True)
    outside.write_bytes(b"")
    (folder / "link.png").symlink_to(outside)
    assert is_upload(str(folder / "a" / "x.png"), folder)
    others = [str(path) for path in (outside, folder / ".." / "secret.png", folder / "link.png", folder, "x.png")]
    others += ["/etc/passwd", f"file://{folder}/a/x.png", "http://localhost/x.png", "", f"{folder}/a\0.png"]
    assert [path for path in (*others, None, 7, [str(folder)]) if is_upload(path, folder)] == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("text.png", b"no picture at all", "text.png: cannot be read as a picture"),
        ("empty.png", b"", "empty.png: cannot be read as a picture"),
        ("cut.png", encoded(Image.effect_noise((90, 90), 50))[:2000], "cut.png: cannot be read as a picture"),
        ("wide.png", encoded(Image.new("1", (200, 51))), "200x51 pixels, 10,000 at most are taken here"),
        ("line.png", encoded(Image.new("1", (9000, 1))), "both sides must have at least 2"),
        ("thin.png", encoded(Image.new("1", (4000, 2))), "collapses to"),
        ("big.bmp", bytes(2**20 + 1), "big.bmp: 1.0 MB, 1 at most are taken here"),
        ("drawn.eps", encoded(Image.new("RGB", (9, 9)), "EPS"), "drawn.eps: cannot be read as a picture"),
        (
            "moving.gif",
            encoded(Image.new("L", (9, 9)), "GIF", save_all=True, append_images=[Image.new("L", (9, 9), 9)]),
            "animated",
        ),
    ],
)
def test_uploads_that_are_refused_name_the_file_and_not_its_path(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError) as caught:
        opened(tmp_path / name, LIMITS, resolution=64)
    assert message in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_an_upload_that_was_swept_away_is_named(tmp_path):
    with pytest.raises(ImageError, match="is no longer here"):
        opened(tmp_path / "x.png", LIMITS, resolution=64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "MPO"])
def test_every_kind_that_is_promised_is_read(kind, tmp_path):
    image = Image.new("RGB", (40, 30), (200, 40, 90))
    file = tmp_path / f"x.{kind.lower()}"
    file.write_bytes(encoded(image, kind))
    found = opened(file, LIMITS, resolution=64)
    assert found.size == (40, 30) and str(found.path) == file.name
    assert np.abs(np.asarray(found.image(), int)[..., :3] - np.asarray(image, int)).max() < 16
