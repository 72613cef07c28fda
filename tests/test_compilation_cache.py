"""The compilation cache: where it lies, what is said where it cannot be used, and starts that compile nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from PIL import Image

from qil_jax.compilation_cache import ELSEWHERE, cache_folder, use_compilation_cache

ROOT = Path(__file__).resolve().parents[1]

COUNTED = """
import sys
import jax
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
from qil_jax.cli.decompose import main
status = main(sys.argv[1:])
count = lambda name: seen.count(f"/jax/compilation_cache/{name}")
print("counted", count("cache_misses"), count("cache_hits"))
sys.exit(status)
"""


def setting(name: str = "jax_compilation_cache_dir") -> Any:
    return getattr(jax.config, name)


@pytest.fixture
def undone():
    """The settings that `use_compilation_cache` changes are put back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: setting(name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("undone")
def test_the_users_folder_is_used_unless_the_environment_names_another(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = setting()
    assert use_compilation_cache() is None and setting() == before
    monkeypatch.delenv(ELSEWHERE)
    folder = use_compilation_cache()
    assert folder is not None and folder == cache_folder()
    assert folder.is_relative_to(tmp_path / "qil_jax" / "compiled")
    assert setting() == str(folder) and folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard tells programs to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder().is_relative_to(tmp_path / "home" / ".cache" / "qil_jax")


@pytest.mark.usefixtures("undone")
def test_a_user_without_a_home_is_a_warning(monkeypatch, capsys):
    """As in a container whose user is a number that its system does not know."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (ELSEWHERE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert use_compilation_cache() is None
    assert capsys.readouterr().err == (
        f"warning: no home folder; compiled programs are not kept: set {ELSEWHERE} to a folder\n"
    )


@pytest.mark.usefixtures("undone")
def test_a_folder_that_cannot_be_used_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(ELSEWHERE)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = setting()
    assert use_compilation_cache() is None and setting() == before
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and ELSEWHERE in warning and warning.count("\n") == 1


def counted(cache: Path, *words) -> tuple[int, int, str]:
    """Programs compiled and programs found by `qil decompose` in a process of its own, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != ELSEWHERE}
    environment["XDG_CACHE_HOME"] = str(cache)
    command = [sys.executable, "-c", COUNTED, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    misses, hits = done.stdout.split("counted")[1].split()
    return int(misses), int(hits), done.stdout


@pytest.mark.full
def test_a_start_after_compile_only_compiles_nothing(tmp_path):
    """A folder of unlike pictures, the last batch of which is not full."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, size in {"a": (64, 48), "b": (48, 64), "c": (64, 64)}.items():
        Image.effect_noise(size, 80).convert("RGB").save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text("a red barn " * len(name))
    words = [pictures, "--out", tmp_path / "out", "--layers", 1, "--steps", 2, "--resolution", 64, "--batch", 2]
    misses, _, said = counted(tmp_path / "cache", *words, "--compile-only")
    assert misses > 0 and "compiled 1/" in said and not (tmp_path / "out").exists()
    misses, hits, _ = counted(tmp_path / "cache", *words)
    assert (misses, hits > 0) == (0, True)
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["a", "b", "c"]
