"""The presets of the full-size model: sharded as the page says, and their steps traced without any parameter."""

import json
import os
import subprocess
import sys

import jax
import pytest
from flax import nnx
from runs import ROOT, World, environment, finish
from waiting import simulated

from qil_jax.mesh import TRAINING_RULES, AbstractSharding, abstract_mesh, shardings
from qil_jax.models.axes import Axis
from qil_jax.programs import ended
from qil_jax.training.experiment import Precision
from qil_jax.weights import Component
from tools import write_presets
from tools.presets import SLICES, network, preset

TRANSFORMER = 20_430_407_232
"""Parameters of the layered release's transformer (docs/specification.md, 4)."""


def test_the_page_holds_the_tables_of_the_presets():
    assert ended(write_presets.main, ["--check"]) == 0


@pytest.mark.parametrize("name", SLICES)
def test_a_preset_divides_over_its_slice(name):
    """The mesh holds the slice's chips, and all parameters, rows and microbatches divide over it."""
    experiment = preset(name)
    kind, _, cores = SLICES[name].rpartition("-")
    assert experiment.mesh.devices == int(cores) // (2 if kind == "v5p" else 1)
    sharding = AbstractSharding(abstract_mesh(experiment.mesh), TRAINING_RULES)
    shardings(network(experiment.stage.component), sharding)
    rows = experiment.data.loader.rows
    assert rows // experiment.optimiser.accumulate % sharding.ways(Axis.BATCH) == 0
    assert experiment.precision is Precision.BF16


@pytest.fixture(scope="module")
def traced() -> dict[str, dict[str, int]]:
    """What full_size.py prints."""
    environment = os.environ | {"XLA_FLAGS": simulated(8), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, str(ROOT / "tests" / "training" / "full_size.py")]
    return json.loads(subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.full
def test_the_step_at_full_size_is_traced(traced, name):
    """No parameter is allocated, the state keeps its shapes, and of the transformer every large array is split."""
    found = traced[name]
    assert found["state is kept"] and found["rows of losses"] == 8
    assert found["largest array in memory"] < 2**20
    if name == "rgba_vae":
        assert found["trained"] == sum(x.size for x in jax.tree.leaves(nnx.state(network(Component.VAE), nnx.Param)))
    elif name == "finetune_lora":
        assert found["frozen"] == TRANSFORMER and 0 < found["trained"] < TRANSFORMER / 50
    else:
        assert (found["trained"], found["frozen"]) == (TRANSFORMER, 0)
    assert name == "rgba_vae" or found["whole large arrays"] == 0


ALWAYS = "finetune_lora"
"""A transformer with everything that the others have, and factors besides."""


@pytest.mark.parametrize(
    "name", [name if name == ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in SLICES]
)
@pytest.mark.full
def test_check_of_a_tiny_checkpoint_of_the_same_structure(world: World, tmp_path, name):
    """`qil train --check` on eight devices, through the program: only sizes, folders and the mesh are changed."""
    vae = name == "rgba_vae"
    values = {
        "start.checkpoint": world.base,
        "start.vae": "none",
        "data.sources": f'["{world.scenes}"]',
        "data.inputs": "pictures",
        "data.workers.processes": 0,
        "data.loader.rows": 8,
        "data.loader.buckets.resolutions": "[32]",
        "data.loader.buckets.row_tokens": 4 if vae else 48,
        "data.text_tokens": 16,
        "validation.every": 0,
        **({"mesh.data": 8} if vae else {"mesh.fsdp": 4, "mesh.tensor": 2}),
    }
    run = tmp_path / "run"
    sets = [word for setting, value in values.items() for word in ("--set", f"{setting}={value}")]
    program = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "released" / f"{name}.py"), "--check"]
    said = finish([*program, "--out", str(run), *sets], environment(world.folder, devices=8))
    assert "trained: " in said and "memory of the step, a device: " in said and not run.exists()
