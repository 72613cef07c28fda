"""The whole build: Beam and a plain loop agree, kills cost nothing, and the dataset is read without TensorFlow."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import psd_files
import pytest
import tensorflow_datasets as tfds
from apache_beam.runners.portability.prism_runner import PrismRunner
from PIL import Image

from qil_jax.cli import build_dataset, make_scenes
from qil_jax.documents.limits import PSDLimits
from qil_jax.documents.prepare import from_bytes
from qil_jax.documents.psd import read_psd
from qil_jax.layers.compositing import composite
from qil_jax.programs import ended
from qil_jax.records.record import decode

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Seven designs, a copy of one, a broken document and a flat one, in subfolders, some with sidecars."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "more").mkdir()
    for i in range(7):
        (folder / f"{'more/' * (i % 2)}design {i}.psd").write_bytes(psd_files.design(100 * i))
    (folder / "copy.psd").write_bytes(psd_files.design(0))
    (folder / "broken.PSD").write_bytes(psd_files.design(0)[:3000])
    flat = psd_files.document()
    flat.create_pixel_layer(psd_files.texture(3), name="only one")
    (folder / "single.psb").write_bytes(psd_files.saved(flat))
    (folder / "design 2.txt").write_text("discs on a ground \u00e4\n", encoding="utf-8")
    (folder / "design 2.json").write_text(json.dumps({"licence": "CC0-1.0", "category": "poster", "source": "us"}))
    (folder / "notes.md").write_text("not a document")
    return folder


def count(folder: Path) -> int:
    """Files below a folder that another program is writing."""
    return sum(len(files) for _, _, files in os.walk(folder))


BUILDS = """
import os, sys, time
from pathlib import Path
from qil_jax.cli import build_documents
from qil_jax.cli.build_dataset import main
out, said = Path(sys.argv[1]), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for enough in sys.stdin:
    build = os.fork()
    if not build:
        os._exit(main(sys.argv[2:]))
    ended = 0
    while not ended and sum(len(files) for _, _, files in os.walk(out)) < int(enough):
        time.sleep(0.01)
        ended, _ = os.waitpid(build, os.WNOHANG)
    if not ended:
        os.kill(build, 9)
        os.waitpid(build, 0)
    print("ended" if ended else "killed", file=said, flush=True)
"""
"""Builds that are killed once there are as many files as a line says; what a build imports is imported once."""


def shards(out: Path) -> dict[str, str]:
    files = sorted((out / "layered_dataset").rglob("*"))
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    assert build_dataset.main([str(source), "--out", str(out), "--licence", "MIT"]) == 0
    return out


@pytest.mark.full
def test_report(built):
    report = json.loads((built / "report.json").read_text())
    assert (report["documents"], report["kept"]) == (10, 7)
    assert report["dropped"] == {"duplicate": 1, "too few layers": 1, "unreadable": 1}
    rows = {row["document"]: row for row in report["rows"]}
    assert list(rows) == sorted(rows)
    assert rows["design 0.psd"]["detail"] == "looks like copy.psd" and rows["copy.psd"]["layers_after"] >= 2
    assert rows["design 2.psd"]["category"] == "poster" and rows["design 2.psd"]["psnr_compositor"] >= 40
    page = (built / "report.html").read_text()
    assert all(name in page for name in rows) and page.count("<img") > 20 and "too few layers: 1 after" in page


def test_beam_and_a_plain_loop_write_the_same_bytes(source, built, tmp_path):
    loop = tmp_path / "loop"
    assert build_dataset.main([str(source), "--out", str(loop), "--licence", "MIT", "--runner", "none"]) == 0
    assert shards(loop) == shards(built)


def test_records_are_the_documents(source, built):
    builder = tfds.builder_from_directory(str(built / "layered_dataset" / "1.0.0"))
    assert "tensorflow" not in sys.modules and builder.info.redistribution_info.license == "MIT"
    records = [decode(x) for split in builder.info.splits for x in builder.as_data_source(split)]
    assert len(records) == 7
    seen = {record.source: record for record in records}
    assert seen["us"].caption == "discs on a ground \u00e4" and seen["us"].licence == "CC0-1.0"
    other = seen["more/design 3.psd"]
    assert (other.caption, other.licence, other.size) == ("", "MIT", (48, 48))
    document = read_psd((source / "more" / "design 3.psd").read_bytes(), PSDLimits())
    difference = composite(other.layers, other.size) - composite(document.layers, document.size)
    assert np.abs(difference).max() <= 1 / 255


def test_building_again_changes_nothing(source, built, capsys):
    before = {f: f.stat().st_mtime_ns for f in (built / "layered_dataset").rglob("*")}
    assert build_dataset.main([str(source), "--out", str(built), "--licence", "MIT"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert ended(build_dataset.main, [str(source), "--out", str(built), "--licence", "GPL"]) == 2
    assert "remove it or choose another --out" in capsys.readouterr().err
    assert {f: f.stat().st_mtime_ns for f in (built / "layered_dataset").rglob("*")} == before


@pytest.mark.full
def test_a_changed_sidecar_is_noticed(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.psd").write_bytes(psd_files.design(5))
    command = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--runner", "none"]
    assert build_dataset.main(command) == 0 and build_dataset.main(command) == 0
    (tmp_path / "in" / "a.json").write_text(json.dumps({"licence": "CC0-1.0"}))
    assert ended(build_dataset.main, command) == 2
    assert "built from other documents or settings" in capsys.readouterr().err


@pytest.mark.full
def test_kills_cost_nothing(source, built, tmp_path):
    """Four kills after random numbers of files, then a run to the end: the same bytes, and nothing half-written."""
    out = tmp_path / "out"
    arguments = [str(source), "--out", str(out), "--licence", "MIT"]
    rng, outcomes = random.Random(0), []
    starting = [sys.executable, "-c", BUILDS, str(out), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(starting, cwd=ROOT, text=True, **pipes) as builds:
        for _ in range(4):
            builds.stdin.write(f"{count(out) + rng.randrange(1, 8)}\n")
            builds.stdin.flush()
            outcomes.append(builds.stdout.readline())
            if (out / "layered_dataset" / "1.0.0").exists():
                assert shards(out).items() >= shards(built).items()
        builds.stdin.close()
    assert len(outcomes) == 4 and "killed\n" in outcomes
    command = [sys.executable, "-m", "qil_jax", "build-dataset", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert shards(out) == shards(built)
    assert done.stderr == "" and "ownload" not in done.stdout  # what libraries print is not the program's


@pytest.mark.parametrize("runner", [[], ["--runner", "none"]], ids=["Beam", "loop"])
@pytest.mark.full
def test_a_bad_file_beside_a_document_costs_that_document(tmp_path, runner):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    bad = {
        "cut.json": b'{"licence": "CC0-1.0"',
        "deep.json": b"[" * 100_000,
        "empty.json": b"",
        "latin.json": '{"licence": "\u00e4"}'.encode("latin-1"),
        "list.json": b"[]",
        "number.json": b'{"licence": 3, "category": ["a"]}',
        "surrogate.json": b'{"source": "\\ud800"}',
        "text.txt": b"\xff\xfe",
    }
    for i, (name, data) in enumerate([*bad.items(), ("good.json", b'\xef\xbb\xbf{"licence": "MIT", "by": 1}')]):
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".psd").write_bytes(psd_files.design(100 * i))
    assert build_dataset.main([str(folder), "--out", str(out), *runner]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["kept"] == 1 and report["dropped"] == {"bad sidecar": len(bad)}
    rows = {Path(row["document"]).stem: row for row in report["rows"]}
    assert rows["good"]["licence"] == "MIT" and all(name in rows[Path(name).stem]["detail"] for name in bad)
    assert "licence is 3, category is ['a']: must be a text" in rows["number"]["detail"]


@pytest.mark.full
def test_a_busy_machine_drops_nothing(tmp_path, monkeypatch):
    """Waiting is no CPU time: three seconds on the clock are within two of CPU time."""
    (tmp_path / "a.psd").write_bytes(psd_files.design())
    monkeypatch.setattr("qil_jax.documents.prepare.prepare", psd_files.prepare_slowly)
    command = [str(tmp_path), "--out", str(tmp_path / "out"), "--runner", "none", "--seconds", "2"]
    assert build_dataset.main(command) == 0


@pytest.mark.full
def test_a_document_without_end_costs_that_document(tmp_path, monkeypatch):
    (tmp_path / "a.psd").write_bytes(psd_files.design())
    (tmp_path / "b.psd").write_bytes(psd_files.design(100) + b"for ever")
    monkeypatch.setattr("qil_jax.documents.prepare.prepare", psd_files.prepare_for_ever)
    command = [str(tmp_path), "--out", str(tmp_path / "out"), "--runner", "none", "--seconds", "2"]
    assert build_dataset.main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dropped"] == {"time limit": 1} and report["rows"][1]["detail"] == "more than 2 s of CPU time"


@pytest.mark.full
def test_what_differs_from_the_stored_picture_is_dropped_by_one_option(tmp_path):
    """The figure stands in every row, kept or dropped, and in the report's histogram."""
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(0), name="ground")
    psd.create_pixel_layer(psd_files.texture(1, 24, 24), name="thing", top=10, left=10)
    (tmp_path / "in").mkdir()
    stored = Image.fromarray(np.asarray(psd.composite(force=True)) ^ 24)
    (tmp_path / "in" / "a.psd").write_bytes(psd_files.with_stored_picture(psd, stored))
    (tmp_path / "in" / "b.psd").write_bytes(psd_files.design(100))
    command = [str(tmp_path / "in"), "--runner", "none", "--out"]
    assert build_dataset.main([*command, str(tmp_path / "strict")]) == 0
    report = json.loads((tmp_path / "strict" / "report.json").read_text())
    far, near = report["rows"]
    assert (far["reason"], near["reason"], report["kept"]) == ("misdrawn", None, 1)
    assert 18 < far["psnr_stored"] < 25 and f"{far['psnr_stored']:.1f} dB against the stored picture" in far["detail"]
    assert far["layers_before"] == 2 and far["psnr_compositor"] > 40 and near["psnr_stored"] > 40
    assert "dB against the stored picture, from" in (tmp_path / "strict" / "report.html").read_text()
    assert build_dataset.main([*command, str(tmp_path / "lenient"), "--min-stored-psnr", "15"]) == 0
    report = json.loads((tmp_path / "lenient" / "report.json").read_text())
    assert report["kept"] == 2 and report["rows"][0]["notes"] == [
        f"unlike the stored picture: {far['psnr_stored']:.1f} dB"
    ]


@pytest.mark.full
def test_small_layers_and_merging_are_options(tmp_path):
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(0), name="ground\0")
    for i in range(3):
        psd.create_pixel_layer(psd_files.texture(i, 10, 10), name=f"thing {i}", top=4, left=1 + 12 * i)
    psd.create_pixel_layer(psd_files.texture(9, 1, 1), name="dot", top=40, left=40)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.psd").write_bytes(psd_files.saved(psd))
    names = {}
    for out, words in {
        "merged": [],
        "apart": ["--merge", "none"],
        "every": ["--merge=none", "--min-layer-pixels=1"],
    }.items():
        assert build_dataset.main([str(tmp_path / "in"), "--runner", "none", "--out", str(tmp_path / out), *words]) == 0
        (row,) = json.loads((tmp_path / out / "report.json").read_text())["rows"]
        (file,) = (tmp_path / out / ".work").glob("*/*.record")
        names[out] = [layer.name for layer in from_bytes(file.read_bytes()).layers]
        told = "merged 'dot' into its neighbour: shows 1 pixel, 64 needed" in row["decisions"]
        assert told == (out == "apart")
    things = ["thing 0", "thing 1", "thing 2"]
    assert names == {
        "merged": ["ground", "thing 0 + thing 1 + thing 2 + dot"],
        "apart": ["ground", *things[:2], "thing 2 + dot"],
        "every": ["ground", *things, "dot"],
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--min-stored-psnr", "nan"], "--min-stored-psnr"),
        (["--min-layer-pixels", "0"], "--min-layer-pixels must be above 0, got 0"),
        (["--min-psrn", "30"], "unknown option --min-psrn (did you mean --min-psnr?)"),
        (["--project=x", "--seconds", "9"], "unknown option --project; options of Apache Beam go behind --"),
        (["--seconds", "-1", "--memory-gib", "0"], "--seconds must be above 0, got -1.0\n  --memory-gib must be"),
        (["--memory-gib", "nan"], "argument --memory-gib: nan is no number of at most"),
        (["--runner", "Flnik"], "--runner Flnik"),
        (["--", "--direct_num_wrkers", "2"], "no option --direct_num_wrkers (did you mean --direct_num_workers?)"),
        (["--runner", "none", "--", "--streaming"], "--runner none takes no options of Apache Beam"),
        (["--caption-url", "http://x", "--caption-prompt", "nowhere.txt"], "--caption-prompt nowhere.txt: cannot be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_before_any_work(source, tmp_path, capsys, words, says):
    try:
        status = ended(build_dataset.main, [str(source), "--out", str(tmp_path / "out"), *words])
    except SystemExit as end:
        status = end.code
    assert status == 2 and not (tmp_path / "out").exists()
    assert says in capsys.readouterr().err


@pytest.mark.full
def test_options_of_beam_are_passed_on(source, built, tmp_path):
    own = ["--", "--direct_num_workers", "2", "--direct_running_mode", "multi_threading"]
    assert build_dataset.main([str(source), "--out", str(tmp_path / "out"), "--licence", "MIT", *own]) == 0
    assert shards(tmp_path / "out") == shards(built)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (build_dataset.main, ["a.psd"]),
        (build_dataset.main, ["a.psd", "--runner", "none"]),
        (make_scenes.main, ["--count", "1", "--side", "32"]),
    ],
    ids=["Beam", "loop", "scenes"],
)
@pytest.mark.full
def test_nothing_is_downloaded_to_run_beam(tmp_path, monkeypatch, main, words):
    """Beam's default runner would first fetch a program, and run the pipeline there if it could."""
    started = []
    monkeypatch.setattr(PrismRunner, "run_pipeline", lambda *_: started.append("Prism"))
    (tmp_path / "a.psd").write_bytes(psd_files.design())
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", "out"]) == 0
    assert not started


@pytest.mark.parametrize("where", ["nowhere", "empty"])
def test_no_documents(where, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert ended(build_dataset.main, [str(tmp_path / where), "--out", str(tmp_path / "out")]) == 2
    assert "no .psd or .psb there" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.full
def test_nothing_kept_is_said(source, tmp_path, capsys):
    assert build_dataset.main([str(source / "broken.PSD"), "--out", str(tmp_path), "--runner", "none"]) == 1
    assert "no document is kept" in capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text())["dropped"] == {"unreadable": 1}
    glob = str(source / "design*.psd")
    assert build_dataset.main([glob, "--out", str(tmp_path), "--runner", "none", "--min-side", "999"]) == 1
    assert json.loads((tmp_path / "report.json").read_text())["dropped"] == {"too small": 4}
