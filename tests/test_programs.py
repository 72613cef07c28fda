"""How programs end, and what they say of it."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qil_jax.programs import INTERRUPTED, UNUSABLE, command, ended, interruptible

ROOT = Path(__file__).resolve().parents[1]
WAITS = """
import time
from qil_jax.programs import interruptible, leave
def work():
    print("begun", flush=True)
    time.sleep(600)
try:
    interruptible(work)
except KeyboardInterrupt:
    print("heard")
    leave(130)
"""


def test_what_a_program_says_when_it_is_stopped_or_the_disk_fails(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(Path("tools") / "convert.py")])

    def stopped(argv):
        raise KeyboardInterrupt

    def full(argv):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/a")

    assert ended(stopped, ["to-orbax", "a b", "c"]) == INTERRUPTED
    assert capsys.readouterr().err == "\nstopped; to go on: python tools/convert.py to-orbax 'a b' c\n"
    assert ended(full, ["x"]) == UNUSABLE
    said = capsys.readouterr().err
    assert said.startswith("error: [Errno 28] No space left on device: 'out/a'; to go on: python tools/convert.py x")
    assert ended(lambda argv: len(argv), ["x"]) == 1
    with pytest.raises(KeyError):
        ended(lambda argv: {}["a programming error"], [])


def test_another_program_is_named_as_it_was_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/qil-infer"])
    assert command(["a.png", "--out", "x y"]) == "qil-infer a.png --out 'x y'"


def test_work_runs_beside_the_main_thread_and_gives_its_value_or_error():
    assert interruptible(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(SystemExit) as caught:
        interruptible(lambda: sys.exit(3))
    assert caught.value.code == 3


def test_an_interrupt_does_not_wait_for_what_runs():
    call = [sys.executable, "-c", WAITS]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert (process.stdout.read(), process.stderr.read()) == ("heard\n", "")
    assert process.returncode == INTERRUPTED
