"""Validation of a run: the loss on held-out records, and sheets of the model's outputs."""

import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qil_jax.files import AnyPath
from qil_jax.layers.sheets import grid
from qil_jax.loader.batch import Batch
from qil_jax.loader.loader import Loader
from qil_jax.training.disk import at
from qil_jax.training.parameters import Params
from qil_jax.training.setup import TrainingRun

FOLDER = "samples"
SEED = 977
"""Seed of the noise in validation."""


class Validation:
    """The validation of a run, compiled at the first call."""

    def __init__(self, run: TrainingRun, loader: Loader):
        self.run, self.loader = run, loader
        self._loss = jax.jit(self._sums)
        self._batches: list[tuple[Batch, Any]] | None = None

    def __call__(self, ema_params: Params, step: int, folder: AnyPath) -> dict[str, float]:
        """The loss of the EMA parameters on fixed batches and noise; writes a sheet to FOLDER/samples/STEP.png."""
        if self._batches is None:
            count = min(self.run.experiment.validation.batches, self.loader.plan.steps_per_epoch)
            self._batches = [
                (batch, self.run.stage.inputs(batch)) for batch, _ in zip(self.loader, range(count), strict=False)
            ]
            self.loader.close()
        sums: dict[str, list[float]] = {}
        for i, (_, inputs) in enumerate(self._batches):
            found = jax.device_get(self._loss(ema_params, self.run.frozen, inputs, jnp.int32(i)))
            for name, (total, count) in found.items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(total)
                entry[1] += float(count)
        if jax.process_count() == 1:
            self._sheet(self._batches[0], ema_params, folder / FOLDER / f"{step:08d}.png")
        return {f"validation/{name}": total / count for name, (total, count) in sums.items() if count}

    def _sums(self, params: Params, frozen: Params, inputs: Any, number: Array) -> dict[str, tuple[Array, Array]]:
        """Sum and count of every loss of a batch."""
        key = jax.random.fold_in(jax.random.key(SEED), number)
        inputs = dataclasses.replace(inputs, weights=inputs.weights / jnp.sum(inputs.weights))
        loss, metrics = self.run.stage.objective(params, frozen, inputs, key)
        return {"loss": (loss, jnp.ones(())), **metrics.sums}

    def _sheet(self, first: tuple[Batch, Any], ema_params: Params, file: AnyPath) -> None:
        """Write a sheet of pictures in pairs of lines: targets, and below them the model's outputs."""
        params = {**self.run.frozen, **ema_params}
        lines = self.run.stage.sheet(params, *first, self.run.experiment.validation.samples)
        sheet = io.BytesIO()
        grid(lines).save(sheet, format="PNG")
        with at(file):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(sheet.getvalue())
