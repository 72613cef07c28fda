"""The config of a training run: a frozen dataclass, built by a function in configs/ and stored as JSON."""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import StrictBool, with_config

from qil_jax.choices import AttentionKind, Inputs, OptimiserKind, Precision, Remat, Spread
from qil_jax.errors import QilError
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.mesh import MeshShape
from qil_jax.training.bounds import number_problems
from qil_jax.training.lora import LoRAConfig
from qil_jax.training.muon import KERNELS
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.vae_loss import VAELoss
from qil_jax.weights.tables.entries import Component


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Checkpoint folders, of either layout, that provide a stage's components.

    The folder `checkpoint/` of a finished run is such a folder.

    Attributes:
      checkpoint: folder of all components, except those given by another field.
      vae: folder of the RGBA-VAE; None: the folder `checkpoint`.
      lora: LoRA file of low-rank changes that are trained further; None: they begin at zero.
    """

    checkpoint: str
    vae: str | None = None
    lora: str | None = None

    def folder(self, component: Component) -> str:
        """The folder from which a component is read."""
        return self.vae if component is Component.VAE and self.vae else self.checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """The command that makes a folder which a config reads.

    Attributes:
      folder: path of the folder as written in the config.
      command: shell command that makes the folder, run in the directory to which the config's paths are relative.
      needs: folders that the command reads.
    """

    folder: str
    command: str
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the training data.

    Attributes:
      sources: folders of records (docs/data.md), or one folder of cached latents, depending on `inputs`.
      inputs: whether pictures and captions are encoded during training, or beforehand by `qil cache-latents`.
      loader: number of rows, size buckets and tasks of the batches.
      text_tokens: maximum number of text tokens of a sample; longer prompts are truncated.
      workers: numbers of decoding threads and processes, which do not affect the batches.
    """

    sources: tuple[str, ...]
    inputs: Inputs = Inputs.PICTURES
    loader: LoaderConfig
    text_tokens: int = 512
    workers: Workers = dataclasses.field(default_factory=Workers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Intervals at which the training state is saved, and retention of checkpoints.

    Attributes:
      every: number of steps between checkpoints, 1 or more.
      keep_last: number of newest checkpoints that are kept, 1 or more.
      keep_every: checkpoints at multiples of this step are kept permanently; 0: none.
    """

    every: int = 1000
    keep_last: int = 2
    keep_every: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Settings of the validation on held-out records.

    Attributes:
      every: number of steps between validations; 0: no validation.
      split: name of the split of the sources that is read.
      batches: number of batches of `data.loader.rows` rows, the same in each validation; 1 or more.
      samples: number of rows shown on the sample sheet.
      steps: number of sampler steps for the sample sheet.
    """

    every: int = 0
    split: str = "validation"
    batches: int = 4
    samples: int = 4
    steps: int = 20


@with_config(extra="forbid", revalidate_instances="always")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Config of a run of one stage: equal experiments give equal runs on equal meshes.

    Every number has bounds, which `training/bounds.py` lists.

    Attributes:
      stage: stage of training, which determines the trained component and the possible tasks.
      start: checkpoints from which the components are read.
      data: settings of records and batches.
      loss: settings of the loss: a VAELoss for the stage rgba_vae, otherwise a FlowLoss.
      steps: number of optimiser steps of the run, 1 or more.
      seed: seed of all noise, from 0 to 2^32 - 1.
      optimiser: settings of AdamW or Muon, the learning rates and the EMA.
      precision: dtype of compute; parameters, optimiser state and EMA are always fp32.
      attention: implementation of attention on each device.
      spread: how queries meet the keys of other devices where `mesh.context` splits sequences; otherwise unused.
      remat: activations that are recomputed in the backward pass.
      unroll: whether each block is compiled separately, which takes longer but trains 10 % faster on a CPU.
      trainable: regular expression that the paths of trained parameters must contain; empty: all are trained.
      lora: settings of low-rank changes, which are trained while all parameters are frozen; None: the parameters are
        trained.
      mesh: number of devices along each mesh axis.
      checkpoints: settings of saving the training state.
      validation: settings of the validation.
      log_every: number of steps between lines of metrics, 1 or more.
      give_up: number of successive steps without a finite loss after which the run stops, 1 or more.
      made_by: commands that make the folders that the run reads.
    """

    stage: Stage
    start: Start
    data: DataConfig
    loss: FlowLoss | VAELoss
    steps: int
    seed: int = 0
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    precision: Precision = Precision.BF16
    attention: AttentionKind = AttentionKind.XLA
    spread: Spread = Spread.GATHER
    remat: Remat = Remat.NONE
    unroll: StrictBool = False
    trainable: str = ""
    lora: LoRAConfig | None = None
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    checkpoints: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    log_every: int = 20
    give_up: int = 20
    made_by: tuple[Made, ...] = ()

    def __post_init__(self) -> None:
        wanted = VAELoss if self.stage is Stage.RGBA_VAE else FlowLoss
        if not isinstance(self.loss, wanted):
            raise ExperimentError(f"the stage {self.stage} needs a {wanted.__name__}, not {self.loss}")
        problems = number_problems(self)
        try:
            re.compile(self.trainable)
        except re.error as error:
            problems.append(f"trainable '{self.trainable}' is no regular expression: {error}")
        else:
            problems += _muon_problems(self)
        problems += _lora_problems(self)
        if self.data.loader.rows % self.optimiser.accumulate:
            problems.append(
                f"data.loader.rows {self.data.loader.rows} is no multiple of optimiser.accumulate "
                f"{self.optimiser.accumulate}: raise the one or lower the other"
            )
        wrong = [task for task, _ in self.data.loader.tasks.mix if task not in self.stage.tasks]
        if wrong:
            problems.append(
                f"the stage {self.stage} cannot train {', '.join(wrong)}: its tasks are {', '.join(self.stage.tasks)}"
            )
        if problems:
            raise ExperimentError("\n  ".join(problems))

    @property
    def flow_loss(self) -> FlowLoss:
        """The loss settings of a stage that trains the transformer."""
        assert isinstance(self.loss, FlowLoss)
        return self.loss

    @property
    def vae_loss(self) -> VAELoss:
        """The loss settings of the stage that trains the RGBA-VAE."""
        assert isinstance(self.loss, VAELoss)
        return self.loss


def _lora_problems(experiment: Experiment) -> list[str]:
    """What in an experiment does not go together with its LoRA, or with training without one."""
    stage, lora, trainable, start = experiment.stage, experiment.lora, experiment.trainable, experiment.start.lora
    if lora is None:
        return [] if start is None else [f"start.lora is {start}, and lora is none: set lora.rank to that of the file"]
    problems = []
    if stage is Stage.RGBA_VAE:
        problems.append(f"lora changes the transformer, and {stage} trains the VAE: set lora=none")
    if trainable:
        problems.append(
            f"trainable '{trainable}' selects parameters, and lora freezes all of them: set lora=none, or "
            f"select linear maps by lora.targets"
        )
    return problems


def _muon_problems(experiment: Experiment) -> list[str]:
    """Why Muon, if it is the optimiser, would change no parameter of an experiment."""
    if experiment.optimiser.kind is not OptimiserKind.MUON:
        return []
    if experiment.stage is Stage.RGBA_VAE:
        why = f"{experiment.stage} trains the VAE, which has no such kernels"
    elif experiment.lora is not None:
        why = "lora freezes them, and its factors are no matrices by themselves"
    elif not any(re.search(experiment.trainable, path) for path in KERNELS):
        why = f"trainable '{experiment.trainable}' fits none of them, such as {min(KERNELS)}"
    else:
        return []
    return [f"optimiser.kind is muon, for the kernels of the transformer's blocks, and {why}: set optimiser.kind=adamw"]


class ExperimentError(QilError):
    """A config file or an override is invalid, or the experiment cannot be trained. The message gives the fix."""


@contextmanager
def refusing() -> Iterator[None]:
    """Convert a QilError of the block into an ExperimentError.

    Raises:
      ExperimentError: if the block raises a QilError.
    """
    try:
        yield
    except QilError as error:
        raise ExperimentError(str(error)) from error
