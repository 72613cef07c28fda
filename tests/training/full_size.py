"""Trace the training step of every preset at full size on eight devices, and print what came of it as JSON.

A program of its own, because the tests' run-time type checks want arrays where this has shapes only.
"""

import json
from typing import Any

import jax

from qil_jax.mesh import MeshShape, make_mesh
from qil_jax.planning.training import abstract_step
from qil_jax.training.stages.kinds import Stage
from tools.presets import SLICES, preset

ROWS = 8


def traced(name: str) -> dict[str, Any]:
    """Numbers of the step of a preset. No array of a parameter's size may come into being."""
    experiment = preset(name)
    vae = experiment.stage is Stage.RGBA_VAE
    mesh = make_mesh(MeshShape.parse("data=8" if vae else "fsdp=4,tensor=2"))
    made = abstract_step(experiment, mesh, rows=ROWS)
    after, metrics = jax.eval_shape(made.step, made.state, made.frozen, made.batch)
    shapes = lambda tree: [(x.shape, str(x.dtype)) for x in jax.tree.leaves(tree)]
    large = [x for x in jax.tree.leaves((made.state, made.frozen)) if x.size > 2**20]
    return {
        "trained": sum(x.size for x in made.state.params.values()),
        "frozen": sum(x.size for x in made.frozen.values()),
        "state is kept": shapes(after) == shapes(made.state),
        "rows of losses": metrics.losses.rows.shape[0],
        "whole large arrays": sum(x.sharding.is_fully_replicated for x in large),
        "largest array in memory": max((x.size for x in jax.live_arrays()), default=0),
    }


if __name__ == "__main__":
    print(json.dumps({name: traced(name) for name in SLICES}))
