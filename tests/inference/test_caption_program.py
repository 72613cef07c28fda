"""`qil decompose` without prompts, with a tiny model that captions: before results are planned, or captions alone."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qil_jax.cli.decompose import main
from qil_jax.encoders.captioner import Captioner

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--layers", "2", "--steps", "2", "--resolution", "64"]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two pictures without prompts, and one with."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    for name, image in {"a": Image.fromarray(noise), "b": Image.new("RGB", (64, 64), "red")}.items():
        image.save(folder / f"{name}.png")
    Image.fromarray(noise[::-1]).save(folder / "said.png")
    (folder / "said.txt").write_text("it is said")
    return folder


@pytest.fixture
def infer(captioning, capsys, monkeypatch):
    """The program, which counts pictures that it captions; returns what it says."""
    generate = Captioner.generate

    def counting(self, prompts, *args, **kwargs):
        run.captioned += len(prompts)
        return generate(self, prompts, *args, **kwargs)

    def run(*words, status: int = 0) -> str:
        run.captioned = 0
        found = main(["--checkpoint", str(captioning), *OPTIONS, *map(str, words)])
        said = capsys.readouterr()
        assert found == status, said.err
        return said.out + said.err

    monkeypatch.setattr(Captioner, "generate", counting)
    return run


@pytest.mark.full
def test_a_caption_is_a_prompt_that_the_model_has_written(infer, pictures, tmp_path):
    """Bit for bit: a picture without a prompt, and with the caption as the prompt."""
    out = tmp_path / "out"
    said = infer(pictures, "--out", out)
    assert infer.captioned == 2 and said.count("caption of ") == 2
    records = {name: json.loads((out / name / "result.json").read_text()) for name in ("a", "b", "said")}
    prompts = {name: record["settings"]["prompt"] for name, record in records.items()}
    assert len(set(prompts.values())) == 3 and prompts["said"] == "it is said" and "caption" not in records["said"]
    wrote = {"written_by": "the checkpoint", "language": "en", "style": "unbroken", "text": prompts["b"]}
    assert len(prompts["b"]) > 5 and records["b"]["caption"] == wrote and f"caption of b: {prompts['b'][:4]}" in said
    again = infer(pictures, "--out", out)
    assert infer.captioned == 0 and again.count("already finished") == 3 and "2 captions of an earlier run" in again
    infer(pictures / "b.png", "--out", tmp_path / "told", "--prompt", prompts["b"])
    files = sorted(file.name for file in (out / "b").glob("0*.png"))
    assert len(files) == 2 and "caption" not in json.loads((tmp_path / "told" / "b" / "result.json").read_text())
    for file in files:
        assert (tmp_path / "told" / "b" / file).read_bytes() == (out / "b" / file).read_bytes()


KILLED = """
import os, sys
from qil_jax.inference import captions
from qil_jax.cli.decompose import main
keep, written = captions.CaptionFiles.keep, []

def killing(self, name, picture, caption):
    if written:
        with captions.whole_file(self.file(name, picture)) as draft:
            draft.write_text("half of")
            os.kill(os.getpid(), 9)
    written.append(name)
    return keep(self, name, picture, caption)

captions.CaptionFiles.keep = killing
main(sys.argv[1:])
"""


@pytest.mark.full
def test_captions_alone_after_a_kill(infer, captioning, pictures, tmp_path):
    """Whole text files, which later runs take for prompts; what is there stays."""
    words = [pictures, "--caption-only", "--checkpoint", captioning, *OPTIONS]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (first,) = {file.name for file in pictures.glob("?.txt")}
    stamps = {name: (pictures / name).stat().st_mtime_ns for name in (first, "said.txt")}
    assert "2 of 3 pictures have a prompt" in infer(pictures, "--caption-only") and infer.captioned == 1
    names = ["a.png", "a.txt", "b.png", "b.txt", "said.png", "said.txt"]
    assert sorted(file.name for file in pictures.iterdir()) == names
    assert stamps == {name: (pictures / name).stat().st_mtime_ns for name in stamps}
    compiled = infer(pictures, "--compile-only", "--out", tmp_path / "out")
    assert infer.captioned == 0 and "caption" not in compiled and compiled.count("compiled") > 3


@pytest.mark.full
def test_programs_are_compiled_before_captions_are_there(infer, pictures, tmp_path, monkeypatch):
    """What captions need is compiled, and what the picture needs whose prompt is known."""
    compiled = infer(pictures / "a.png", "--compile-only", "--out", tmp_path / "out")
    assert "compiled 2 programs that caption 1 pictures, but none that depend on the captions' lengths" in compiled
    assert infer.captioned == 0 and not (tmp_path / "out").exists()


@pytest.mark.full
def test_what_cannot_caption_is_refused_before_compute(infer, pictures, captioning, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(captioning, broken)
    (broken / "processor" / "preprocessor_config.json").write_text('{"patch_size": 16}')
    refused = infer(pictures, "--out", tmp_path / "out", "--checkpoint", broken, status=2)
    assert "(16, 2, 2) are not (14, 2, 2)" in refused and refused.count("error") == 1 and "loading" not in refused
    for more, says in (
        (["--caption-only", "--prompt", "x"], "--caption-only goes with neither --prompt nor --compile-only"),
        ([], "--out is needed"),
    ):
        with pytest.raises(SystemExit):
            main([str(pictures), "--checkpoint", str(captioning), *more])
        assert says in capsys.readouterr().err
    assert infer.captioned == 0 and not (tmp_path / "out").exists()
    assert main([str(pictures), "--caption-only"]) == 2  # the shipped model
    assert "knows no token of a picture, so it cannot caption: give prompts" in capsys.readouterr().err
