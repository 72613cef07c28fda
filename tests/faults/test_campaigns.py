"""Small runs of the campaigns of tools/fuzz, whose figures are in docs/reliability.md, and that they can fail."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import psd_files
import pytest
from in_process import watched_here

from qil_jax.cli import build_dataset
from qil_jax.documents import prepare
from qil_jax.export import bounds, formats
from qil_jax.export.format import Format
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.programs import ended
from tools.fuzz import __main__ as fuzz
from tools.fuzz import commands as fuzz_commands
from tools.fuzz import kills as fuzz_kills
from tools.fuzz import own_json as fuzz_json
from tools.fuzz import pictures as fuzz_pictures
from tools.fuzz import readers as fuzz_readers
from tools.fuzz.cases import ROOT, watched


@pytest.mark.full
def test_broken_pictures_are_decomposed_or_refused_for_a_reason(monkeypatch, capsys):
    monkeypatch.setattr(fuzz_pictures, "watched", watched_here)
    assert fuzz.main(["pictures", "--count", "24"]) == 0
    printed = capsys.readouterr().out
    assert "decomposed" in printed and "refused: cannot be read as a picture" in printed


@pytest.mark.full
def test_the_campaign_of_pictures_finds_what_is_lost(monkeypatch, capsys):
    def loses(words):
        done = watched_here(words)
        if words[0] == "decompose":
            (fuzz_pictures.Path(words[1]) / "000001.txt").write_text("changed")
            (fuzz_pictures.Path(words[words.index("--out") + 1]) / "notes.txt").unlink()
        return done

    monkeypatch.setattr(fuzz_pictures, "watched", loses)
    assert fuzz.main(["pictures", "--count", "2", "--seed", "0"]) == 1
    assert "changed or gone: notes.txt" in capsys.readouterr().out


@pytest.mark.full
def test_broken_command_lines_are_refused_or_do_what_they_say(capsys):
    assert fuzz.main(["commands", "--count", "80"]) == 0
    printed = capsys.readouterr().out
    for program in ("decompose", "train", "convert", "validate", "make-scenes"):
        assert f"{program}: refused" in printed
    assert "decompose: done" in printed


def test_the_campaign_of_command_lines_finds_tracebacks_and_losses(monkeypatch, capsys):
    from qil_jax.cli import validate

    monkeypatch.setattr(fuzz_commands, "COMMANDS", {"validate": ("checkpoint",)})
    monkeypatch.setattr(validate, "main", lambda words: {}["a programming error"])
    assert fuzz.main(["commands", "--count", "1"]) == 1
    assert "ended with KeyError" in capsys.readouterr().out
    monkeypatch.setattr(validate, "main", lambda words: Path("out/notes.txt").unlink() or 0)
    assert fuzz.main(["commands", "--count", "1"]) == 1
    assert "changed or gone: out/notes.txt" in capsys.readouterr().out


@pytest.mark.full
def test_kills_cost_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))  # kills may leave half an entry in it
    jobs = fuzz_kills._jobs
    monkeypatch.setattr(fuzz_kills, "_jobs", lambda folder: jobs(folder)[:2])
    # How long a whole run takes says when to kill one, so it is a process as well; inputs and restarts need none.
    timed = lambda words: any(f"{os.sep}whole{os.sep}" in word for word in words)
    monkeypatch.setattr(fuzz_kills, "watched", lambda words: (watched if timed(words) else watched_here)(words))
    assert fuzz.main(["kills", "--count", "2"]) == 0


@pytest.mark.full
def test_a_full_disk_during_a_build_is_reported(monkeypatch, tmp_path, capsys):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.psd").write_bytes(psd_files.design())

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(prepare, "write_whole", full)
    words = [str(tmp_path / "documents"), "--out", str(tmp_path / "out")]
    assert ended(build_dataset.main, words) == 2
    *_, error, advice = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: [Errno 28] No space left on device: ") and str(tmp_path / "out") in error
    assert advice.startswith("documents that are prepared stay so; to go on: ")
    monkeypatch.undo()
    assert build_dataset.main(words) == 0


@pytest.fixture
def here(monkeypatch):
    """Cases of readers in this process, which has too many threads to be forked."""
    monkeypatch.setattr(bounds, "MOST_PIXELS", bounds.MOST_PIXELS)  # campaigns lower it
    for module in (fuzz_readers, fuzz_json):
        monkeypatch.setattr(module, "judged", lambda seeds, judge: map(judge, seeds))


@pytest.mark.parametrize(("campaign", "count"), [("psd", 20), ("ora", 30), ("pptx", 20), ("zip", 30), ("json", 100)])
def test_broken_files_are_read_as_they_are_or_refused(campaign, count, here, capsys):
    assert fuzz.main([campaign, "--count", str(count)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert ": read" in printed and ": refused" in printed


def test_the_campaigns_of_readers_find_tracebacks_and_silent_differences(here, monkeypatch, capsys):
    read = formats.READERS[Format.ZIP]

    def renamed(file: Path) -> LayerTree:
        tree = read(file)
        names = tuple(f"{name}." for name in tree.layered.names)
        return dataclasses.replace(tree, layered=dataclasses.replace(tree.layered, names=names))

    monkeypatch.setitem(formats.READERS, Format.ZIP, renamed)
    assert fuzz.main(["zip", "--count", "20"]) == 1
    assert "its layers are not those that the manifest lists" in capsys.readouterr().out
    monkeypatch.setitem(formats.READERS, Format.ZIP, lambda file: {}["a programming error"])
    assert fuzz.main(["zip", "--count", "1"]) == 1
    assert "KeyError: 'a programming error'" in capsys.readouterr().out


DEADLY = """
import ctypes
from tools.fuzz.cases import Case
from tools.fuzz.isolated import judged
def judge(seed):
    if seed == 1:
        ctypes.string_at(0)
    while seed == 3:
        pass
    return Case(seed=seed, outcome="read")
for case in judged(range(5), judge, seconds=1):
    print(case.seed, case.failure or case.outcome)
"""


@pytest.mark.full
def test_a_case_that_dies_or_hangs_ends_no_campaign():
    call = [sys.executable, "-c", DEADLY]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    died, hung = "1 ended its process (signal 11)", "3 took more than 1 s"
    assert done.stdout.splitlines() == ["0 read", died, "2 read", hung, "4 read"]
