"""What `Pipeline` says of arguments that are no pictures, no requests, no settings and no checkpoints.

In a process of its own, since the tests' own check types by a hook that users do not have.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
from PIL import Image
from qil_jax import Pipeline, Request, Settings
from qil_jax.errors import QilError
from qil_jax.inference.checkpoint import LayeredCheckpoint

pipeline = Pipeline.of(LayeredCheckpoint.open(), is_abstract=True)  # the shipped one, none of whose tensors is read
image = Image.new("RGB", (8, 8))
request = Request(image=image, prompt="")

def decompose(requests, settings=Settings()):
    pipeline.decompose(requests, settings)

found = {}
for call in json.loads(sys.argv[1]):
    try:
        eval(call)
    except QilError as error:
        found[call] = str(error)
    except BaseException as error:
        found[call] = f"not in words: {error!r}"[:300]
print(json.dumps(found))
"""
CALLS = {
    "decompose(None)": "requests must be a list of Request(image=...), got None",
    "decompose(request)": "requests must be a list: put the request into one, [request]",
    "decompose('a.png')": "requests must be a list of Request(image=...), got 'a.png'",
    "decompose({'image': 1})": "requests must be a list of Request(image=...), got {'image': 1}",
    "decompose(['a.png'])": "request 0: must be a Request(image=...), got 'a.png'",
    "decompose([])": "there is nothing to decompose: give at least one request",
    "decompose([request], {'steps': 2})": "settings must be Settings(steps=..., guidance=...), got {'steps': 2}",
    "decompose([request], None)": "settings must be Settings(steps=..., guidance=...), got None",
    "decompose([Request(image='a.png')])": "image must be a PIL image, got str",
    "decompose([Request(image=image, prompt='x' * 10**6)])": "prompt has 1000000 characters, 20000 at most: shorten it",
    "decompose([Request(image=image, layers='4')])": "layers must be an integer, got '4'",
    "decompose([Request(image=image, seed=10**5000)])": "seed must be from 0 to 4294967295, got int of thousands",
    "decompose([request], Settings(guidance=10**5000))": "must be a finite number, got int of thousands of digits",
    "Pipeline.load(5)": "the checkpoint must be the path of a folder, or None for the shipped one; got 5",
    "Pipeline.load(sharding='data=2')": "sharding must be a Sharding or None, got 'data=2'",
    "Pipeline.load(passes='both')": "passes must be a Passes, got 'both'",
    "Pipeline.load(residency=None)": "residency must be a Residency, got None",
    "Pipeline.load(loras=['a.safetensors'])": "loras must be pairs of a file and a scale",
    "Pipeline.load(loras='ab')": "loras must be pairs of a file and a scale",
    "Pipeline.load('Qwen/Layered')": "Qwen/Layered: no such folder; if it is a repository's name, download it",
    "Pipeline.load('infer.py')": "infer.py: is a file; give the folder that holds model_index.json",
}


@pytest.mark.full
def test_wrong_types_say_what_is_expected():
    call = [sys.executable, "-c", PROGRAM, json.dumps(list(CALLS))]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {call: found[call] for call, says in CALLS.items() if says not in found[call]} == {}
