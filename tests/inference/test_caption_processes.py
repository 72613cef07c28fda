"""Several processes caption together: each caption is written once, and all learn what it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from waiting import HANGS, free_port, simulated

ROOT = Path(__file__).resolve().parents[2]
COUNTING = """
import sys
from qil_jax.cli import decompose_captions
from qil_jax.inference import captions
from qil_jax.cli.decompose import main
from qil_jax.programs import leave
keep, write = captions.KeptCaptions.keep, decompose_captions.write_captions

def counting(self, name, picture, caption):
    import jax
    print(f"{name} kept by {jax.process_index()}", file=sys.stderr)
    return keep(self, name, picture, caption)

def saying(*args, **how):
    import json
    found = write(*args, **how)
    print(json.dumps({name: picture.prompt for name, picture in found.items()}), file=sys.stderr)
    raise KeyboardInterrupt

captions.KeptCaptions.keep, decompose_captions.write_captions = counting, saying
leave(main())
"""
"""`qil decompose` that ends once the captions are there."""


@pytest.mark.full
def test_each_caption_is_written_once(captioning, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for name, colour in {"a": "red", "b": "blue", "c": "white"}.items():
        Image.new("RGB", (64, 48), colour).save(pictures / f"{name}.png")
    where = f"127.0.0.1:{free_port()},2"
    words = [str(pictures), "--checkpoint", str(captioning), "--out", str(out), "--wait", str(HANGS), "--batch", "2"]
    words += ["--layers", "2", "--steps", "2", "--resolution", "64", "--mesh", "data=2"]
    environment = os.environ | {"XLA_FLAGS": simulated(1), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    started = [
        subprocess.Popen([sys.executable, "-c", COUNTING, *words, "--distributed", f"{where},{i}"], **pipes)
        for i in range(2)
    ]
    ended = [(*process.communicate(timeout=HANGS), process.returncode) for process in started]
    assert [status for _, _, status in ended] == [130, 130], ended
    kept = [line for _, err, _ in ended for line in err.splitlines() if " kept by " in line]
    assert sorted(kept) == [f"{name} kept by 0" for name in "abc"]
    assert ended[0][0].count("caption of ") == 3 and "caption" not in ended[1][0]
    prompts = [json.loads(line) for _, err, _ in ended for line in err.splitlines() if line.startswith("{")]
    assert len(prompts) == 2 and prompts[0] == prompts[1] and len(set(prompts[0].values())) > 1
    found = [json.loads(file.read_text()) for file in (out / ".captions").iterdir()]
    assert {record["picture"]: record["caption"] for record in found} == {
        f"{name}.png": prompt for name, prompt in prompts[0].items()
    }
