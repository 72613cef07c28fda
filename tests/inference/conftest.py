"""Pictures for the tests of this folder."""

from pathlib import Path

import pytest
from captioning import write_captioning_checkpoint
from PIL import Image


@pytest.fixture(scope="session")
def captioning(tmp_path_factory) -> Path:
    """A checkpoint that captions."""
    return write_captioning_checkpoint(tmp_path_factory.mktemp("captions") / "checkpoint")


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("b.png", "a.PNG", "c.jpg", "notes.txt"):
        if name.endswith("txt"):
            (folder / name).write_text("no picture")
        else:
            Image.new("RGB", (64, 48), "red").save(folder / name)
    return folder
