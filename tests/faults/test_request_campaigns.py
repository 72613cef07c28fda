"""Small runs of the campaigns of edit scripts and of requests to the app, and that they can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from qil_jax.editing import geometry
from tools.fuzz import __main__ as fuzz

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.full
def test_edit_scripts_do_what_they_say_or_are_refused(capsys):
    assert fuzz.main(["edits", "--count", "60"]) == 0
    printed = capsys.readouterr().out
    assert "edited" in printed and "refused: no JSON" in printed


@pytest.mark.full
def test_the_campaign_of_edit_scripts_finds_tracebacks_and_wrong_pixels(monkeypatch, capsys):
    monkeypatch.setattr(geometry, "flipped", lambda layer, axis: layer)
    monkeypatch.setattr(geometry, "moved", lambda *_: {}["a programming error"])
    assert fuzz.main(["edits", "--seed", "60", "--count", "40"]) == 1
    printed = capsys.readouterr().out
    assert "differ from what the operations say" in printed and "ended with KeyError" in printed


def requests(count: int, *, broken: str = "") -> tuple[int, str]:
    """The status of a campaign of requests in a process of its own, as gradio keeps what it was told, and its lines."""
    code = f"{broken}from tools.fuzz.__main__ import main; raise SystemExit(main(['app', '--count', '{count}']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.full
def test_requests_to_the_app_are_answered_or_refused():
    status, printed = requests(150)
    assert status == 0, printed
    assert "call done" in printed and "call 400" in printed and "upload 200" in printed


@pytest.mark.full
def test_the_campaign_of_requests_finds_what_is_accepted_and_faults():
    status, printed = requests(80, broken="from qil_jax.app.calls import Calls; Calls.check = lambda *_: None; ")
    assert status == 1, printed
    assert "accepted, and then" in printed and "answered 500" in printed
