"""`qil decompose` as a program: arguments, what it says, and how it ends."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qil_jax.cli.decompose import main
from qil_jax.cli.decompose_arguments import parse_arguments
from qil_jax.inference.request import Request, Settings
from qil_jax.programs import called
from tools.make_demo_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "0"], "--layers must be at least 1, got 0"),
        (["--layers", "21"], "--max-layers N allows more"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--guidance", "nan"], "argument --guidance: nan is no number of at most 4294967295"),
        (["--samples", "0", "--batch", "0"], "--batch must be at least 1"),
        (["--resolution", "500"], "--resolution must be a multiple of 32"),
        (["--seed", "4294967296"], "argument --seed: 4294967296 is no integer of at most 4294967295"),
        (["--seed", "-1"], "--seed must be from 0 to 4294967295, got -1"),
        (["--seed", "9" * 23], "is no integer of at most 4294967295"),
        (["--max-prompt-tokens", "1025"], "--max-prompt-tokens must be from 1 to 1024"),
        (["--layers", "3000000", "--max-layers", "0"], "--max-layers must be at least 1"),
    ],
)
def test_arguments_are_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["a.png", "--checkpoint", str(tmp_path), "--out", "x", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_files_that_are_no_pictures_are_told(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("broken.png", "poster.psd", "photo.jxl"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert infer(tmp_path / "in", tmp_path / "in" / "poster.psd", "--out", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert f"{tmp_path / 'in'}: skipped photo.jxl (a format that is not read" in told.out
    assert (
        f"{tmp_path / 'in' / 'poster.psd'}: layers, which {called('export')} reads: to decompose it, save" in told.err
    )
    assert "broken.png: cannot be read as a picture" in told.err


def test_what_is_not_read_of_a_prompt_is_told(tmp_path, capsys):
    """Descriptions of layers stand at its end, so these are not cut."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "described.json").write_text('[{"text": "the ground"}, {"text": "a night sky"}]')
    words = [tmp_path / "a.png", "--out", tmp_path / "out", "--prompt", "word " * 2000]
    assert infer(*words, "--describe", tmp_path / "described.json") == 2
    refused = capsys.readouterr().err
    assert "a.png: the prompt has " in refused and "descriptions of layers stand at the end of the prompt" in refused
    assert infer(*words, "--resolution", 32 * 1024) == 2  # does not fit into memory, which is said next
    told = capsys.readouterr()
    tokens, unread = map(int, re.findall(r"has (\d+) tokens, of which the last (\d+) are not read", told.out)[0])
    assert tokens - unread == 512 and "give --max-prompt-tokens, up to 1024" in told.out
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_what_was_not_read_of_a_prompt_is_recorded(checkpoint, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    words = ["--checkpoint", checkpoint, "--prompt", "word " * 20, "--layers", 1, "--resolution", 64, "--steps", 1]
    for most in (8, 512):
        out = tmp_path / str(most)
        assert infer(tmp_path / "a.png", *words, "--max-prompt-tokens", most, "--out", out) == 0
        record = json.loads((out / "a" / "result.json").read_text())
        assert record["settings"]["max_prompt_tokens"] == most
        cut = [
            said for said in record["decisions"] if re.match(r"the prompt has \d+ tokens, of which the last \d+", said)
        ]
        assert len(cut) == (most == 8)


def test_more_layers_with_an_override(tmp_path):
    words = ["a.png", "--checkpoint", str(tmp_path), "--out", "x", "--layers", "25", "--max-layers", "30"]
    arguments = parse_arguments(words)
    assert arguments.options.layers == 25 and arguments.options.resolution == 640
    request = Request(image=Image.new("RGB", (64, 64)), layers=25, max_layers=30)
    assert request.problems() == []
    assert Request(image=request.image, layers=21).problems() and Request(image=request.image, layers=0).problems()
    assert Settings(guidance=float("nan")).problems() and Settings(steps=0).problems()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    write_checkpoint(folder)
    return folder


def command(*words) -> list[str]:
    return [sys.executable, str(ROOT / "infer.py"), *map(str, words)]


def infer(*words) -> int:
    """The exit status that `qil decompose` would have, by its `main` in this process."""
    return main([*map(str, words)])


SMALL = ("--layers", 2, "--resolution", 128)


@pytest.mark.full
def test_the_program(checkpoint, pictures, tmp_path, capsys):
    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", *SMALL, "--batch", 2, "--steps"]
    done = subprocess.run(command(*words, 2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for expected in ("an empty prompt is used", "loading ", "compiling batch 1/2", "step 2/2", "batch's seconds"):
        assert expected in done.stdout
    assert "b.png: 64x48 pixels, the model sees 160x96" in done.stdout
    for name in "abc":
        folder = tmp_path / "out" / name
        files = sorted(p.name for p in folder.iterdir())
        assert files == ["01_Layer_1.png", "02_Layer_2.png", "layers.psd", "result.json", "sheet.png"]
        record = json.loads((folder / "result.json").read_text())
        assert record["size"] == record["model_size"] == [160, 96] and record["settings"]["steps"] == 2
        assert record["recomposition_psnr_db"] > 0 and set(record["batch_seconds"]) == {
            "text",
            "encode",
            "denoise",
            "decode",
        }
        with Image.open(folder / "01_Layer_1.png") as layer:
            assert layer.size == (160, 96) and layer.mode == "RGBA"
    assert infer(*words, 2) == 0 and capsys.readouterr().out.count("already finished") == 3
    assert infer(*words, 3) == 2
    refused = capsys.readouterr().err
    assert "was made with" in refused and "steps 2, now 3" in refused
    assert "Traceback" not in refused


@pytest.mark.full
def test_the_program_refuses_before_compute(checkpoint, pictures, tmp_path, capsys):
    words = [pictures / "b.png", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    for extra, message in (
        (["--mesh", "data=3"], "devices"),
        (["--mesh", "banana=1"], "banana"),
        (["--checkpoint", pictures], "model_index.json"),
        (["--resolution", 1_000_000], "GB of memory"),
    ):
        assert infer(*words, *extra) == 2
        refused = capsys.readouterr().err
        assert message in refused and "Traceback" not in refused
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_bad_pictures_are_skipped_when_told(checkpoint, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes(b"x")
    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", *SMALL, "--steps", 1]
    assert infer(*words) == 2 and "--skip-bad" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert infer(*words, "--skip-bad") == 3
    said = capsys.readouterr().out
    assert "skipped: " in said and "broken.png" in said
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["a", "b", "c"]


@pytest.mark.full
def test_what_an_interrupt_leaves(checkpoint, pictures, tmp_path):
    """Ctrl-C in the compiled loop ends at once, in two lines; the command that they name goes on."""
    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--resolution", 64, "--steps", 5000]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    own_cache = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    with subprocess.Popen(command(*words), env=own_cache, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if "step 500/" in line:
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().strip().splitlines()
        rest = process.stdout.read()
    assert process.returncode == 130 and "5000/5000" not in rest
    assert said[0] == "stopped" and said[1].startswith("0 of 3 results are finished; to go on: python ")
    assert str(tmp_path / "out") in said[1] and len(said) == 2


@pytest.mark.full
def test_a_full_disk_is_told(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    from qil_jax.export import result

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out" / "b" / "sheet.png"))

    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", *SMALL, "--steps", 1]
    write = result.write_sheet
    monkeypatch.setattr(result, "write_sheet", lambda *a: full() if (tmp_path / "out" / "a").exists() else write(*a))
    assert infer(*words) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said and "sheet.png" in said
    assert "1 of 3 results are finished; to go on: " in said
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["a"]
    monkeypatch.undo()
    assert infer(*words) == 0
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["a", "b", "c"]


WRONG_REQUESTS = """
import numpy as np
from PIL import Image
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
image = Image.new("RGB", (64, 64))
pipeline = Pipeline.load()
wrong = [
    Request(image=image, layers="3", seed=-1, samples=1.5, prompt=5, negative_prompt=7),
    Request(image="a.png", resolution=500, first_sample=-1),
    Request(image=image, latents=np.zeros((1, 4, 8, 8, 3), np.float32)),
]
for call in (
    lambda: pipeline.decompose(wrong, Settings(steps=True, guidance="4", rescale="norm")),
    lambda: pipeline.decompose([Request(image=image, resolution=640_000)]),
    lambda: Pipeline.load(dtype="float33"),
):
    try:
        call()
    except ValueError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.full
def test_what_is_no_request_is_told_at_once():
    """In a process of its own, because in these tests constructors check types, and for users they do not."""
    done = subprocess.run([sys.executable, "-c", WRONG_REQUESTS], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for words in (
        "ProblemsError cannot decompose:",
        "request 0: layers must be an integer, got '3'",
        "seed must be from 0 to 4294967295, got -1",
        "samples must be an integer, got 1.5",
        "prompt must be text or None, got 5",
        "negative_prompt must be text or None, got 7",
        "request 1: image must be a PIL image, got str",
        "first_sample must be at least 0",
        "request 2: latents have shape (1, 4, 8, 8, 3), this picture needs (1, 4, 8, 8, 16)",
        "steps must be an integer, got True",
        "guidance must be a finite number, got '4'",
        "rescale must be one of none, norm of qil_jax.choices.Rescale, got 'norm'",
        "GB to denoise 8,000,000,000 tokens",
        "dtype must be one of float32, bfloat16",
    ):
        assert words in done.stdout, (words, done.stdout)


@pytest.mark.full
def test_samples_have_noise_of_their_own():
    from qil_jax.inference.pipeline import Pipeline

    image = Image.effect_noise((64, 64), 80).convert("RGB")
    pipeline = Pipeline.load()
    both = pipeline.decompose([Request(image=image, samples=2)], Settings(steps=1))
    second = pipeline.decompose([Request(image=image, first_sample=1)], Settings(steps=1))
    assert [made.sample for made in (*both, *second)] == [0, 1, 1]
    same = np.abs(second[0].latents - both[1].latents).mean()
    assert same < 0.1 * np.abs(both[0].latents - both[1].latents).mean()
