"""Tiny runs for the tests: the demonstration's own configs on 32-pixel scenes and random weights."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from waiting import HANGS, free_port, simulated

from qil_jax import mesh
from qil_jax.cli import cache_latents, make_scenes, train
from qil_jax.loader.loader import Loader
from qil_jax.programs import called, ended
from qil_jax.training import check, loop, setup
from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import Experiment
from qil_jax.training.objectives import LossMetrics, Objective
from qil_jax.training.parameters import Params, copied
from qil_jax.training.setup import TrainingRun
from qil_jax.training.stages.flow import FlowStage
from qil_jax.training.stages.kinds import Stage
from tools import make_demo_checkpoint

ROOT = Path(__file__).resolve().parents[2]
GO_ON = f"to go on: {called('train')}"
SIDE, TOKENS = 32, 4


class World:
    """A dataset and a checkpoint, made once."""

    def __init__(self, folder: Path):
        self.folder, self.scenes, self.base = folder, folder / "scenes", folder / "base"
        self.prepared: dict[Any, TrainingRun] = {}
        assert make_demo_checkpoint.main([str(self.base)]) == 0
        wanted = ["--count", "64", "--preset", "simple", "--side", str(SIDE), "--out", str(self.scenes)]
        assert make_scenes.main(wanted) == 0

    def settings(self, stage: Stage, changes: dict[str, Any]) -> list[str]:
        """Overrides of the stage's config in configs/demo: small, from this world, every step reported."""
        pictures = 1 if stage is Stage.RGBA_VAE else 12
        values: dict[str, Any] = {
            "data.sources": f'["{self.scenes}"]',
            "data.inputs": "pictures",
            "data.loader.rows": 2,
            "data.loader.buckets.resolutions": f"[{SIDE}]",
            "data.loader.buckets.row_tokens": pictures * TOKENS,
            "data.text_tokens": 16,
            "start.checkpoint": self.base,
            "start.vae": "none",
            "steps": 6,
            "checkpoints.every": 2,
            "validation.every": 0,
            "log_every": 1,
            "optimiser.warmup_steps": 2,
            "unroll": False,  # blocks are scanned, which compiles sooner
        }
        return [f"{name}={value}" for name, value in (values | changes).items()]

    def experiment(self, stage: Stage, changes: dict[str, Any]) -> Experiment:
        """The same, as what `train` takes."""
        return load_experiment(config_of(stage), self.settings(stage, changes))

    def config_file(self, folder: Path, stage: Stage, changes: dict[str, Any]) -> Path:
        """The same, as a config file in a folder: for programs that take no overrides."""
        file = folder / f"{stage}.py"
        call = f"load_experiment(Path({str(config_of(stage))!r}), {self.settings(stage, changes)!r})"
        lines = (
            "from pathlib import Path",
            "from qil_jax.training.config_file import load_experiment",
            f"def config(): return {call}",
        )
        file.write_text("\n".join(lines) + "\n")
        return file

    def held(self, folder: Path, stage: Stage, changes: dict[str, Any], step: int) -> "Held":
        """A run that waits after a step."""
        held, settings = Held(folder / "held.py"), self.settings(stage, changes)
        text = HELD.format(config=str(config_of(stage)), settings=settings, step=step, hold=str(held.hold))
        held.config.write_text(text)
        return held

    def cache(self, out: Path, changes: dict[str, Any], *more: str) -> int:
        """Latents of the training split by `qil cache-latents`, for stage 3 with changes; its exit status."""
        config = self.config_file(out.parent, Stage.IMAGE_TO_LAYERS, changes)
        given = [str(self.scenes), "--checkpoint", str(self.base), "--splits", "train", "--config", str(config)]
        return ended(cache_latents.main, [*given, "--out", str(out), *more])


HELD = """
import time
from pathlib import Path
from qil_jax.loader.loader import Loader
from qil_jax.training.config_file import load_experiment

hold = Path({hold!r})

def config():
    plain = Loader.__next__

    def held(self):
        if self.state()["step"] == {step} and hold.exists():
            print("held", flush=True)
            while hold.exists():
                time.sleep(0.01)
        return plain(self)

    Loader.__next__ = held
    return load_experiment(Path({config!r}), {settings!r})
"""


class Held:
    """A config whose runs say "held" after a step and wait while `hold` exists, so that no signal comes too late."""

    def __init__(self, config: Path):
        self.config, self.hold = config, config.with_suffix(".hold")

    def command(self, run: Path, *more: str) -> list[str]:
        """The call of `qil train`, as train.py."""
        return [sys.executable, str(ROOT / "train.py"), str(self.config), "--out", str(run), *more]


def mean_square(wait: Callable[[], object] | None = None) -> Objective:
    """An objective that compiles at once and takes until `wait` returns, with the device busy."""

    def slowly(row: np.ndarray) -> np.ndarray:
        assert wait is not None
        wait()
        return np.zeros((), np.float32) * row

    def objective(params: Params, frozen: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, LossMetrics]:
        del frozen, key
        loss = sum((jnp.mean(jnp.square(value)) for value in params.values()), jnp.zeros(()))
        if wait is not None:
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            loss += jax.pure_callback(slowly, shape, batch.rows[0].astype(jnp.float32))
        return loss, LossMetrics(sums={}, rows=jnp.broadcast_to(loss, batch.rows.shape))

    return objective


def on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `qil train`, in this process, the first device alone, whatever the mesh."""
    monkeypatch.setattr(mesh, "make_mesh", lambda shape: mesh.single_device_mesh())


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""
    on_one_device(monkeypatch)


class QuickRuns:
    """`qil train` in this process: on one device, minimising something that compiles at once.

    What is loaded and compiled before the step is kept for the next run.
    """

    settings: ClassVar[dict[str, Any]] = {"trainable": "image_out", "steps": 4, "optimiser.warmup_steps": 0}

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch):
        self.world = world
        self.slowly: Callable[[], object] | None = None
        on_one_device(monkeypatch)
        for module in (loop, check):
            monkeypatch.setattr(module, "prepare", self.prepare)

    def prepare(self, experiment: Experiment, devices: Any) -> TrainingRun:
        key = experiment.data, experiment.start, experiment.trainable, experiment.lora
        if key not in self.world.prepared:
            self.world.prepared[key] = setup.prepare(experiment, devices)
        run = self.world.prepared[key]
        assert isinstance(run.stage, FlowStage)
        return dataclasses.replace(
            run,
            experiment=experiment,
            loader=Loader(run.source, experiment.data.loader, workers=experiment.data.workers),
            stage=dataclasses.replace(run.stage, objective=mean_square(self.slowly)),
            params=copied(run.params),  # a run gives them away
        )

    def argv(self, run: Path, changes: dict[str, Any], *more: str) -> list[str]:
        """Arguments of `qil train`."""
        stage = Stage.TEXT_TO_RGBA
        return command(stage, run, self.world.settings(stage, self.settings | changes), *more)[2:]

    def main(self, run: Path, changes: dict[str, Any] | None = None, *more: str) -> int:
        """The exit status."""
        return train.trained(self.argv(run, changes or {}, *more))


@pytest.fixture
def quick(world: World, monkeypatch: pytest.MonkeyPatch) -> QuickRuns:
    """With this world's data."""
    return QuickRuns(world, monkeypatch)


def config_of(stage: Stage) -> Path:
    """The demonstration's config of a stage."""
    return ROOT / "configs" / "demo" / f"{stage}.py"


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """One per process of the tests."""
    return World(tmp_path_factory.mktemp("world"))


def command(stage: Stage, run: Path, settings: list[str], *more: str) -> list[str]:
    """The call of `qil train`, as train.py."""
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "train.py"), str(config_of(stage)), "--out", str(run), *sets, *more]


def two_of(call: list[str]) -> list[list[str]]:
    """The calls of two processes that run together."""
    where, wait = f"127.0.0.1:{free_port()},2", ["--wait", str(HANGS)]
    return [[*call, "--distributed", f"{where},{index}", *wait] for index in range(2)]


def environment(folder: Path, devices: int = 1) -> dict[str, str]:
    """Of a run of its own, which finds what all tests before it compiled."""
    return os.environ | {"XLA_FLAGS": simulated(devices)}


def says(stream: IO[str] | None, beginning: str) -> None:
    """Wait for a line of a program."""
    assert stream is not None
    while not (line := stream.readline()).startswith(beginning):
        assert line, f"it ended without saying {beginning!r}"


def stop(child: subprocess.Popen, number: int, hold: Path) -> str:
    """Send a signal to a run that waits at the latest while `hold` exists, and let it go on; what it still prints."""
    child.send_signal(number)
    says(child.stderr, "stopping after this step, saving")
    hold.unlink()
    out, _ = child.communicate(timeout=HANGS)
    assert child.returncode == 0
    return out


def finish(call: list[str], env: dict[str, str]) -> str:
    """Run to the end; what it printed."""
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def saved(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a run's checkpoint by its path, and the loader's position as JSON's text."""
    folder = run.absolute() / "checkpoints" / str(step)
    with ocp.PyTreeCheckpointer() as checkpointer:
        kept = checkpointer.metadata(folder / "state").item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), kept)
        restored = checkpointer.restore(folder / "state", ocp.args.PyTreeRestore(restore_args=plain))
    arrays: dict[str, np.ndarray] = {}

    def walk(tree: Any, path: str) -> None:
        if isinstance(tree, dict):
            for name, part in tree.items():
                walk(part, f"{path}/{name}")
        else:
            arrays[path] = np.asarray(tree)

    walk(restored, "")
    with ocp.CheckpointManager(folder.parent, item_names=("position",)) as manager:
        position = manager.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))["position"]
    return arrays | {"/position": np.asarray(str(position["loader"]))}


def assert_same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """All arrays equal, bit for bit."""
    assert found.keys() == wanted.keys()
    assert {path for path in wanted if found[path].tobytes() != wanted[path].tobytes()} == set()
