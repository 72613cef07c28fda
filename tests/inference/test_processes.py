"""Several processes that share a mesh: the latents of one, each result written once, and what a killed one leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from waiting import HANGS, free_port, simulated

from tools.make_demo_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RECORDING = """
import os, sys
from pathlib import Path
import numpy as np
from qil_jax import launch
from qil_jax.inference import job
from qil_jax.cli.decompose import main
from qil_jax.programs import leave

launch.SILENCE = launch.LATER = launch.LEAVE = 86400  # that a process is lost is told by its end alone
folder, victim = Path(os.environ["LATENTS"]), os.environ.get("VICTIM")
write, details, latents = job._write, job._details, {}

def described(planned, made, together):
    latents[planned.folder] = made.latents
    return details(planned, made, together)

def recording(planned, *rest):
    import jax
    found = write(planned, *rest)
    np.save(folder / f"{planned.folder.name}.{jax.process_index()}.npy", latents[planned.folder])
    if victim == str(jax.process_index()):
        os.kill(os.getpid(), 9)
    return found

job._write, job._details = recording, described
leave(main())
"""
"""`qil decompose` that also keeps the latents, and may be killed after the first result of a process."""
SIZES = {"a": (64, 48), "b": (48, 64), "c": (64, 48), "d": (64, 64)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "checkpoint"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, (wide, high) in SIZES.items():
        Image.fromarray(random.integers(0, 255, (high, wide, 3), np.uint8)).resize((wide, high)).save(
            folder / f"{name}.png"
        )
        (folder / f"{name}.txt").write_text(f"the picture {name}")
    return folder


class Run:
    """Runs of the same command on some processes, each with some simulated devices."""

    def __init__(self, folder: Path, checkpoint: Path, pictures: Path, *, processes: int, devices: int, mesh: str):
        self.folder, self.count = folder, processes
        self.words = [str(pictures), "--checkpoint", str(checkpoint), "--out", str(folder / "out")]
        self.words += ["--layers", "2", "--steps", "2", "--resolution", "64", "--mesh", mesh, "--wait", str(HANGS)]
        self.environment = os.environ | {
            "XLA_FLAGS": simulated(devices),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "LATENTS": str(folder),
        }
        folder.mkdir(exist_ok=True)

    def start(self, *more: str, victim: str = "none", words: dict[int, list[str]] | None = None):
        where = f"127.0.0.1:{free_port()},{self.count}"
        together = lambda i: ["--distributed", f"{where},{i}"] if self.count > 1 else []
        return [
            subprocess.Popen(
                [sys.executable, "-c", RECORDING, *self.words, *more, *(words or {}).get(i, []), *together(i)],
                env=self.environment | {"VICTIM": victim},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(self.count)
        ]

    def finish(self, *more: str, **how) -> list[tuple[int, str, str]]:
        started = self.start(*more, **how)
        outs = [process.communicate(timeout=HANGS) for process in started]
        return [(process.returncode, *out) for process, out in zip(started, outs, strict=True)]

    def latents(self) -> dict[str, np.ndarray]:
        files = sorted(self.folder.glob("*.npy"))
        found = {file.name.split(".")[0]: np.load(file) for file in files}
        assert len(found) == len(files), "a result was written twice"
        return found

    def writers(self) -> dict[str, str]:
        return {file.name.split(".")[0]: file.name.split(".")[1] for file in self.folder.glob("*.npy")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, checkpoint, pictures):
    """The latents of one process with four simulated devices."""
    run = Run(tmp_path_factory.mktemp("alone"), checkpoint, pictures, processes=1, devices=4, mesh="fsdp=2,tensor=2")
    ((status, _, err),) = run.finish("--batch", "2")
    assert status == 0, err
    return run.latents()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.full
def test_processes_agree_with_one(tmp_path, checkpoint, pictures, alone, processes):
    run = Run(tmp_path, checkpoint, pictures, processes=processes, devices=4 // processes, mesh="fsdp=2,tensor=2")
    found = run.finish("--batch", "2")
    assert [status for status, _, _ in found] == [0] * processes, found
    latents = run.latents()
    assert latents.keys() == alone.keys() == set(SIZES)
    for name, wanted in alone.items():
        assert wanted.std() > 0.1
        assert np.abs(latents[name] - wanted).max() <= 1e-5
    assert len(set(run.writers().values())) > 1
    assert found[0][1].count("done") == len(SIZES) and "step 2/2" in found[0][1]
    assert all("step" not in out and "done" not in out for _, out, _ in found[1:])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(SIZES)


@pytest.mark.full
def test_a_killed_process_loses_nothing_that_was_written(tmp_path, checkpoint, pictures, alone):
    """The victim is the process at which the others are connected."""
    victim = 0
    run = Run(tmp_path, checkpoint, pictures, processes=2, devices=2, mesh="fsdp=2,tensor=2")
    ended = run.finish(victim=str(victim))
    assert ended[victim][0] == -signal.SIGKILL
    status, _, err = ended[1 - victim]
    assert status == 75 and "stack trace" not in err
    assert err.splitlines()[-1] == f"error: process {victim} of 2 has ended, so this one ends; start all again"
    before = {path.name for path in (tmp_path / "out").iterdir()} & set(SIZES)
    assert 0 < len(before) < len(SIZES)
    draft = tmp_path / "out" / ".d.x.draft"
    draft.mkdir()
    (draft / "qil_jax_draft.json").write_text(json.dumps({"destination": "d"}))
    stamps = {name: (tmp_path / "out" / name / "result.json").stat().st_mtime_ns for name in before}
    again = run.finish()
    assert [status for status, _, _ in again] == [0, 0], again
    assert again[0][1].count("already finished") == len(before)
    latents = run.latents()
    assert all(np.abs(latents[name] - wanted).max() <= 1e-4 for name, wanted in alone.items())
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(SIZES)
    assert stamps == {name: (tmp_path / "out" / name / "result.json").stat().st_mtime_ns for name in before}


@pytest.mark.full
def test_processes_that_would_make_other_results_are_refused(tmp_path, checkpoint, pictures):
    fewer = tmp_path / "fewer"
    shutil.copytree(pictures, fewer)
    (fewer / "c.png").unlink()
    run = Run(tmp_path / "run", checkpoint, pictures, processes=2, devices=1, mesh="fsdp=2")
    words = run.words[1:]
    run.words = []
    for status, _, err in run.finish(words={0: [str(pictures), *words], 1: [str(fewer), *words]}):
        assert status == 2 and "process 1 of 2 would make other results than process 0" in err
    assert not (tmp_path / "run" / "out").exists()


@pytest.mark.full
def test_processes_without_a_mesh_are_refused(tmp_path, checkpoint, pictures):
    for status, _, err in Run(tmp_path, checkpoint, pictures, processes=2, devices=1, mesh="").finish():
        assert status == 2 and "2 processes have 2 devices: give --mesh, such as tensor=2" in err
        assert err.count("error:") == 1
