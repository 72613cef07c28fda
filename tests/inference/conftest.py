"""Pictures for the tests of this folder, and what is compiled meanwhile."""

from pathlib import Path

import jax
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


@pytest.fixture
def compiled():
    """Names of the functions that are compiled while the test runs."""
    seen: list[str] = []

    def listener(event: str, duration_secs: float, **about: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)
