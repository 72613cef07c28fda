"""The campaign of kills: a program, killed at a random time and restarted, must give the output of an unbroken run."""

import dataclasses
import hashlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from tools.fuzz.cases import Case, call_of, hashes, lost, watched, write_bystanders

FASTER = "was faster"
STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files in which orbax stores times."""
SCENES = ("make-scenes", "--side", "64")
INPUTS = {
    "checkpoint": ("tools/make_demo_checkpoint.py",),
    "captioner": ("tools/make_demo_checkpoint.py", "--preset", "caption"),
    "documents": (*SCENES, "--count", "3", "--format", "psd", "--out"),
    "scenes": (*SCENES, "--count", "40", "--preset", "simple", "--out"),
}
"""Command lines that make the inputs; the folder comes last."""
VARYING = ("batch_seconds", "created", "time")
"""Keys of JSON files whose values say when or how fast something was made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A program with a reproducible output.

    Attributes:
      name: name of the program.
      words: command line, in which OUT stands for the output folder.
      share: relative frequency of this program among all kills.
      needs: names, in INPUTS, of the inputs that the program reads.
      kept: suffix of the files that are compared; empty compares all files.
    """

    name: str
    words: Sequence[str]
    share: float
    needs: Sequence[str]
    kept: str = ""

    def call(self, out: Path) -> list[str]:
        """The command line with an output folder."""
        return [word.replace("OUT", str(out)) for word in self.words]

    def made(self, out: Path) -> dict[str, str]:
        """Digests of the output files by path, times excluded."""
        found = (file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in STAMPS)
        files = [file for file in found if file.name.endswith(self.kept)]
        return {str(file.relative_to(out)): _digest(file) for file in files}


def kills(seeds: range, folder: Path) -> Iterator[Case]:
    """One case per seed, a program killed at a random time and restarted."""
    jobs = _jobs(folder)
    for name in sorted({name for job in jobs for name in job.needs}):
        code, printed, _ = watched([*INPUTS[name], str(folder / name)])
        if code:
            raise RuntimeError(f"no input to work on: {printed}")
    (folder / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 48 + 16 * i), (90 * i, 10, 200)).save(folder / "pictures" / f"{i}.png")
    wholes, seconds = {}, {}
    for job in jobs:
        out = folder / "whole" / job.name
        write_bystanders(out)
        began = time.monotonic()
        code, printed, failure = watched(job.call(out / "result"))
        if code or failure:
            raise RuntimeError(f"{job.name} does not even end unharmed: {failure or printed}")
        seconds[job.name] = time.monotonic() - began
        wholes[job.name] = job.made(out)
    for seed in seeds:
        rng = random.Random(seed)
        (job,) = rng.choices(jobs, [job.share for job in jobs])
        out = folder / f"case {seed}"
        began = time.monotonic()
        case = _killed(seed, job, out, rng.uniform(0, seconds[job.name]), wholes[job.name])
        if case.outcome.endswith(FASTER):  # the machine has become faster: two runs took so long
            seconds[job.name] = min(seconds[job.name], (time.monotonic() - began) / 2)
        yield case
        shutil.rmtree(out, ignore_errors=True)


def _jobs(folder: Path) -> list[Job]:
    """The four programs on small inputs in the folder, and `qil decompose` where it captions."""
    at = lambda name: str(folder / name)
    small = ("--layers", "2", "--steps", "2", "--resolution", "64")
    sets = ("steps=6", "log_every=2", "checkpoints.every=2", "mesh.data=1", "validation.every=0", "data.loader.rows=4")
    settings = [word for value in sets for word in ("--set", value)]
    settings += ["--set", f"start.checkpoint={at('checkpoint')}", "--set", f'data.sources=["{at("scenes")}"]']
    return [
        Job(
            name="infer",
            words=("decompose", at("pictures"), "--checkpoint", at("checkpoint"), "--out", "OUT", *small),
            share=0.35,
            needs=("checkpoint",),
        ),
        Job(
            name="convert",
            words=("convert", "to-orbax", at("checkpoint"), "OUT"),
            share=0.35,
            needs=("checkpoint",),
        ),
        Job(
            name="build_dataset",
            words=("build-dataset", at("documents"), "--out", "OUT"),
            share=0.15,
            needs=("documents",),
        ),
        Job(
            name="train",
            words=("train", "configs/demo/rgba_vae.py", "--out", "OUT", *settings),
            share=0.15,
            needs=("checkpoint", "scenes"),
            kept=".safetensors",
        ),
        Job(
            name="captions",
            words=("decompose", at("pictures"), "--checkpoint", at("captioner"), "--out", "OUT", *small),
            share=0.25,
            needs=("captioner",),
        ),
    ]


def _killed(seed: int, job: Job, out: Path, after: float, whole: dict[str, str]) -> Case:
    write_bystanders(out)
    before = hashes(out)
    call = call_of(job.call(out / "result"))
    with subprocess.Popen(
        call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    struck = process.returncode == -signal.SIGKILL
    code, printed, failure = watched(job.call(out / "result"))
    failures = [failure, lost(before, hashes(out))]
    if code and not (job.name == "convert" and "exists" in printed):
        failures.append(f"{job.name}, killed after {after:.2f} s, ends with {code}: {printed.strip()[-300:]}")
    made = job.made(out)
    if made != whole:
        names = sorted(name for name in {**made, **whole} if made.get(name) != whole.get(name))
        failures.append(f"{job.name}, killed after {after:.2f} s, differs in {', '.join(names[:5])}")
    return Case(
        seed=seed,
        outcome=f"{job.name}: {'killed' if struck else FASTER}",
        failure="; ".join(filter(None, failures)),
    )


def _digest(file: Path) -> str:
    data = file.read_bytes()
    if file.suffix == ".json":
        data = json.dumps(_without_times(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_times(kept) for key, kept in value.items() if key not in VARYING}
    return [_without_times(kept) for kept in value] if isinstance(value, list) else value
