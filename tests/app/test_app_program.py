"""tools/app.py: its command line, the schema of its API, and what becomes of faults and of old files."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gradio
import pytest

from qil_jax.app.page import FAULT, answered
from qil_jax.app.server import sweep, work_folder
from qil_jax.errors import ProblemsError, QilError
from tools import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "app.md"


def test_bad_limits_are_named_together():
    with pytest.raises(ProblemsError) as caught:
        app.main(["--queue", "0", "--max-megabytes", "-1", "--port", "70000"])
    assert len(caught.value.problems) == 3


def test_who_serves_everybody_is_warned(monkeypatch, capsys, tmp_path):
    served = []
    monkeypatch.setattr("qil_jax.app.start.loaded_page", lambda *_, **__: None)
    monkeypatch.setattr("qil_jax.app.server.serve", lambda *_, **how: served.append(how["host"]))
    for host in ("0.0.0.0", "127.0.0.1"):
        app.main(["--host", host, "--work", str(tmp_path)])
        assert ("there is no password" in capsys.readouterr().out) == (host == "0.0.0.0")
    assert served == ["0.0.0.0", "127.0.0.1"] and list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_the_documents_name_what_the_schema_has():
    call = [sys.executable, str(ROOT / "tools" / "app.py"), "--schema"]
    done = subprocess.run(call, capture_output=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    calls = json.loads(done.stdout)["paths"]
    assert set(calls) == {
        "/gradio_api/upload",
        "/gradio_api/call/v2/decompose",
        "/gradio_api/call/decompose/{event_id}",
    }
    body = calls["/gradio_api/call/v2/decompose"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    written = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", DOCS.read_text(), re.MULTILINE)
    assert list(body["properties"]) == written
    assert {name: what["type"] for name, what in body["properties"].items() if name != "formats"} == {
        "picture": "string",
        "layers": "string",
        "steps": "number",
        "guidance": "number",
        "seed": "integer",
        "prompt": "string",
        "exact": "boolean",
        "depth": "number",
    }


def test_faults_are_logged_and_not_told(caplog):
    with pytest.raises(gradio.Error) as caught, answered():
        raise RuntimeError("a secret")
    assert caught.value.message == FAULT and "a secret" in caplog.text


def test_unusable_input_is_told_and_not_logged(caplog):
    with pytest.raises(gradio.Error) as caught, answered():
        raise QilError("picture is <none>")
    assert caught.value.message == "picture is <none>" and caplog.text == ""


def test_old_files_go_and_examples_stay(tmp_path):
    for name in ("old", "young", "example"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.png").write_bytes(b"")
    for name in ("old", "example"):
        os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    sweep(tmp_path, {"example"}, 3600.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example", "young"]


def test_the_work_folder_is_gradios_and_goes(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with work_folder(tmp_path / "new") as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and folder.parent == tmp_path / "new"
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        (folder / "x").write_bytes(b"")
    assert list((tmp_path / "new").iterdir()) == []
