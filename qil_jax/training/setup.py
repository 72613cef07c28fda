"""Preparation of a run: checks before any compute, then loading of data and parameters."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from qil_jax.errors import QilError
from qil_jax.loader.loader import Loader
from qil_jax.loader.samples import SampleSource
from qil_jax.mesh import TRAINING_RULES, Sharding
from qil_jax.training.batches import RowPlacement
from qil_jax.training.data import training_data, validation_data
from qil_jax.training.experiment import Experiment, ExperimentError
from qil_jax.training.initial import initial_checkpoints, new_in_network
from qil_jax.training.lora import FACTORS
from qil_jax.training.parameters import Params
from qil_jax.training.stages.flow import flow_stage
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.stages.program import StageProgram
from qil_jax.training.stages.vae import vae_stage
from qil_jax.training.start import check_lora, check_start, require_inputs
from qil_jax.training.step import TrainState, fresh_state, make_step


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """A prepared run.

    Attributes:
      experiment: config of the run.
      mesh: mesh of all devices.
      placement: rows of a batch that this process reads, and their sharding.
      source: records of the training split.
      loader: iterator over batches of the training split.
      validation_loader: iterator over batches of the validation split; None if validation is off.
      stage: operations of the stage on batches and parameters.
      params: trained parameters by path: of the component, or the factors of its low-rank changes.
      frozen: frozen parameters of the trained component by path.
      new: what the trained component has and the initial checkpoint has not, with its values.
    """

    experiment: Experiment
    mesh: Mesh
    placement: RowPlacement
    source: SampleSource
    loader: Loader
    validation_loader: Loader | None
    stage: StageProgram[Any]
    params: Params
    frozen: Params
    new: Mapping[str, bool | int | float]

    def fresh_state(self) -> TrainState:
        """The state before the first step."""
        return fresh_state(self.params, self.experiment.optimiser, self.experiment.steps)

    def step(self, like: TrainState) -> jax.stages.Wrapped:
        """The compiled step of the run, whose result has the shardings of the state `like`."""
        experiment = self.experiment
        return make_step(
            self.stage.objective,
            experiment.optimiser,
            steps=experiment.steps,
            seed=experiment.seed,
            like=like,
            dropout=0.0 if experiment.lora is None else experiment.lora.dropout,
        )


def prepare(experiment: Experiment, mesh: Mesh) -> TrainingRun:
    """Check the experiment, open the data, and load the parameters.

    Raises:
      ExperimentError: if a folder is missing, a checkpoint does not suit the stage, or records lack captions.
      QilError: a StructureError, ConfigError or MeshError, if the checkpoint, a config or the mesh is invalid.
    """
    require_inputs(experiment)
    initial = initial_checkpoints(experiment)
    rows, microbatches = experiment.data.loader.rows, experiment.optimiser.accumulate
    placement = RowPlacement(Sharding(mesh, TRAINING_RULES), rows, microbatches=microbatches)
    processes, validation = placement.processes, experiment.validation
    _, _, (source, loader), validation_loader = _all_of(
        (
            lambda: check_start(experiment, initial),
            lambda: check_lora(experiment, initial),
            lambda: training_data(experiment, processes),
            lambda: validation_data(experiment, processes) if validation.every else None,
        )
    )
    build = vae_stage if experiment.stage is Stage.RGBA_VAE else flow_stage
    stage, params = build(experiment, initial, placement, source)
    trained, frozen = split(params, experiment.trainable if experiment.lora is None else FACTORS)
    return TrainingRun(
        experiment=experiment,
        mesh=mesh,
        placement=placement,
        source=source,
        loader=loader,
        validation_loader=validation_loader,
        stage=stage,
        params=trained,
        frozen=frozen,
        new=new_in_network(experiment, initial),
    )


def _all_of(checks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all checks and return their results.

    Raises:
      QilError: the error of a failed check; if several fail, an ExperimentError with all messages.
    """
    results, errors = [], []
    for check in checks:
        try:
            results.append(check())
        except QilError as error:
            errors.append(error)
    if len(errors) > 1:
        raise ExperimentError("\n".join(dict.fromkeys(map(str, errors))))
    if errors:
        raise errors[0]
    return results


def split(params: Params, trainable: str) -> tuple[Params, Params]:
    """Split parameters into those whose paths contain a match of the regular expression `trainable`, and the others.

    Raises:
      ExperimentError: if no path contains a match.
    """
    pattern = re.compile(trainable)
    trained = {path: value for path, value in params.items() if pattern.search(path)}
    if not trained:
        raise ExperimentError(f"trainable '{trainable}' fits no parameter, such as {next(iter(params))}")
    return trained, {path: value for path, value in params.items() if path not in trained}
