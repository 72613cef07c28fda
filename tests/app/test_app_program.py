"""`qil app`: its command line, the schema of its API, and what becomes of faults and of old files."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import gradio
import pytest
from waiting import free_port

from qil_jax.app.page import FAULT, answered
from qil_jax.app.server import work_folder
from qil_jax.cli import app
from qil_jax.errors import ProblemsError, QilError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "app.md"


def test_bad_limits_are_named_together():
    with pytest.raises(ProblemsError) as caught:
        app.main(["--queue", "0", "--max-megabytes", "-1", "--port", "70000"])
    assert len(caught.value.problems) == 3


def test_who_serves_everybody_is_warned(monkeypatch, capsys, tmp_path):
    served = []
    monkeypatch.setattr("qil_jax.app.start.loaded", lambda *_, **__: None)
    monkeypatch.setattr("qil_jax.app.server.serve", lambda *_, **how: served.append(how["host"]))
    for host in ("0.0.0.0", "127.0.0.1"):
        app.main(["--host", host, "--port", str(free_port()), "--work", str(tmp_path)])
        assert ("there is no password" in capsys.readouterr().out) == (host == "0.0.0.0")
    assert served == ["0.0.0.0", "127.0.0.1"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["999.1.1.1", "203.0.113.7", "a host", "x" * 300])
def test_an_address_that_is_not_this_machines_is_refused_before_anything_is_loaded(host, tmp_path):
    with pytest.raises(QilError, match=r"--host .*: is no address of this machine .*127\.0\.0\.1 serves this"):
        app.main(["--host", host, "--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()


def test_a_port_that_is_in_use_is_refused_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QilError, match=f"--port {port}: is in use on 127"):
            app.main(["--port", str(port), "--work", str(tmp_path / "work")])


@pytest.mark.parametrize("path", ["layers", "/", "/layers/", "/a b", "ftp://x/layers", ""])
def test_a_root_path_that_is_none_is_named(path):
    with pytest.raises(ProblemsError, match="--root-path must be a path such as /layers or an http"):
        app.main(["--root-path", path])


@pytest.mark.full
def test_the_documents_name_what_the_schema_has():
    call = [sys.executable, "-m", "qil_jax", "app", "--schema"]
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


def test_the_work_folder_is_gradios_and_goes(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with work_folder(tmp_path / "new") as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and folder.parent == tmp_path / "new"
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        (folder / "x").write_bytes(b"")
    assert list((tmp_path / "new").iterdir()) == []
