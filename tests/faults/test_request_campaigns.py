"""Small runs of the campaigns of edit scripts and of requests to the app, and that they can fail."""

import pytest

from qil_jax.app.calls import Calls
from qil_jax.editing import geometry
from tools.fuzz import __main__ as fuzz


@pytest.fixture
def own_folder(monkeypatch) -> None:
    """What the app sets in the environment goes."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")


@pytest.mark.full
def test_edit_scripts_do_what_they_say_or_are_refused(capsys):
    assert fuzz.main(["edits", "--count", "60"]) == 0
    printed = capsys.readouterr().out
    assert "edited" in printed and "refused: no JSON" in printed


@pytest.mark.full
def test_the_campaign_of_edit_scripts_finds_tracebacks_and_wrong_pixels(monkeypatch, capsys):
    monkeypatch.setattr(geometry, "flipped", lambda layer, axis: layer)
    monkeypatch.setattr(geometry, "moved", lambda *_: {}["a programming error"])
    assert fuzz.main(["edits", "--seed", "60", "--count", "10"]) == 1
    printed = capsys.readouterr().out
    assert "differ from what the operations say" in printed and "ended with KeyError" in printed


@pytest.mark.full
def test_requests_to_the_app_are_answered_or_refused(capsys, own_folder):
    assert fuzz.main(["app", "--count", "150"]) == 0
    printed = capsys.readouterr().out
    assert "call done" in printed and "call 400" in printed and "upload 200" in printed


@pytest.mark.full
def test_the_campaign_of_requests_finds_what_is_accepted_and_faults(monkeypatch, capsys, own_folder):
    monkeypatch.setattr(Calls, "check", lambda *_: None)
    assert fuzz.main(["app", "--count", "80"]) == 1
    printed = capsys.readouterr().out
    assert "accepted, and then" in printed and "answered 500" in printed
