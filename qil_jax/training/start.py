"""Checks of a run's initial state: required folders exist, and initial checkpoints suit the stage."""

from collections.abc import Iterator
from pathlib import Path

from etils import epath
from flax import nnx

from qil_jax.errors import ProblemsError
from qil_jax.files import is_remote
from qil_jax.models.lora import linear_maps
from qil_jax.models.paths import slashed
from qil_jax.programs import called, typed
from qil_jax.records.sources import dataset_in
from qil_jax.strict_json import read_json
from qil_jax.training.experiment import Experiment, ExperimentError
from qil_jax.training.initial import Initial
from qil_jax.training.lora import differences
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.stages.vae import trains_encoder
from qil_jax.weights import Checkpoint, Component, StoredComponent
from qil_jax.weights.export import ORIGIN
from qil_jax.weights.lora import read_lora

LORA, LORA_FILE = "lora", "pytorch_lora_weights.safetensors"
"""The folder in which a run that trains low-rank changes leaves them, and diffusers' name for the file."""


def require_inputs(experiment: Experiment) -> None:
    """Check that the folders for which the config has a command exist, and that what reads the records is installed.

    Raises:
      ExperimentError: if folders are on an object store, or missing; the message gives the commands that make them, in
        order.
      QilError: if tensorflow-datasets is needed and not installed.
    """
    start, known = experiment.start, {made.folder: made for made in experiment.made_by}
    wanted = dict.fromkeys([*experiment.data.sources, *(start.folder(part) for part in experiment.stage.reads)])
    remote = [folder for folder in wanted if is_remote(folder)]
    if remote:
        raise ExperimentError(
            f"{', '.join(remote)}: records and initial checkpoints are read from local disks: copy them there first "
            f"(gcloud storage cp -r), and give the copies"
        )
    for folder in experiment.data.sources:
        dataset_in(epath.Path(folder))
    missing = [folder for folder in wanted if not epath.Path(folder).exists()]

    def commands(folder: str) -> Iterator[str]:
        if folder in known and not epath.Path(folder).exists():
            for needed in known[folder].needs:
                yield from commands(needed)
            yield typed(known[folder].command)

    steps = dict.fromkeys(command for folder in missing for command in commands(folder))
    if steps:
        problems = [f"{folder}: there is no such folder" for folder in missing if folder not in known]
        made = " and ".join(folder for folder in missing if folder in known)
        problems.append(f"{made} must be made first, by these commands in this order:\n  " + "\n  ".join(steps))
        raise ExperimentError("\n".join(problems))


def check_start(experiment: Experiment, initial: Initial) -> None:
    """Refuse an initial folder that is no checkpoint, or one of a stage that does not precede this one.

    Raises:
      StructureError: if a component is missing or incomplete.
      ExperimentError: if the trained component is quantised, or a component was trained by an unsuitable stage, or the
        VAE lacks a required alpha channel.
    """
    stage = experiment.stage
    for component in stage.reads:
        checkpoint = initial[component]
        folder = checkpoint.folder
        _refuse_lora(folder)
        checkpoint.require_sound()
        if component is not stage.component:
            continue
        _require_full_precision(folder, checkpoint[component])
        origin = origin_of(folder)
        if origin is not None and origin not in stage.predecessors and not _decoder_alone(experiment, checkpoint):
            allowed = ", ".join(stage.predecessors)
            raise ExperimentError(
                f"{folder}: its {component} was trained by {origin}, and {stage} starts from {allowed}, or from a "
                f"checkpoint that no stage wrote: set start.checkpoint to one of these"
            )
    _require_channels(experiment, initial[Component.VAE])


def _decoder_alone(experiment: Experiment, checkpoint: Checkpoint) -> bool:
    """Whether the run trains a VAE's decoder alone, which may follow every stage: all that knows the latents stays."""
    if experiment.stage is not Stage.RGBA_VAE:
        return False
    vae = checkpoint[Component.VAE].architecture.layered.abstract()
    paths = [slashed(path) for path, _ in nnx.to_flat_state(nnx.state(vae, nnx.Param))]
    return not trains_encoder(paths, experiment.trainable)


def _require_full_precision(folder: Path, stored: StoredComponent) -> None:
    how = stored.architecture.quantisation
    if how is not None:
        raise ExperimentError(
            f"{folder}: its {stored.component} is quantised to {how} and cannot be trained: set start.checkpoint to "
            f"the checkpoint of full precision"
        )


def check_lora(experiment: Experiment, initial: Initial) -> None:
    """Refuse low-rank changes of which no linear map of the transformer is a target, or that differ from `start.lora`.

    Raises:
      ConfigError: if the transformer's config is missing or invalid.
      ExperimentError: if there is no target, or the LoRA file has another rank, scale or other targets.
      LoRAError: if the LoRA file cannot be read.
    """
    if experiment.lora is None:
        return
    stored = initial[Component.TRANSFORMER][Component.TRANSFORMER]
    model = stored.architecture.abstract()
    targets = experiment.lora.add_to(model)
    if not targets:
        paths = sorted(linear_maps(model))
        raise ExperimentError(
            f"lora.targets '{experiment.lora.targets}' fits none of the {len(paths)} linear maps, which are "
            f"{', '.join(paths)}"
        )
    if experiment.start.lora is None:
        return
    file, table = Path(experiment.start.lora), stored.table
    if not file.is_file():
        raise ExperimentError(f"{file}: there is no such file: set start.lora to a LoRA file, or to none")
    problems = differences(read_lora(file, table), experiment.lora, table, targets)
    if problems:
        heading = f"{file} cannot be trained further: set lora.rank, lora.alpha and lora.targets to those of the file"
        raise ExperimentError(str(ProblemsError(heading, problems)))


def _refuse_lora(folder: Path) -> None:
    """Refuse the folder of a LoRA file, or the missing checkpoint beside it.

    Raises:
      ExperimentError: if there is such a file.
    """
    for file in (folder / LORA_FILE, folder.parent / LORA / LORA_FILE):
        if file.is_file() and not (folder / "model_index.json").is_file():
            raise ExperimentError(
                f"{folder} is no checkpoint, but {file} holds low-rank changes of one: merge them by "
                f"{called('convert export')}, and set start.checkpoint to the folder that it writes"
            )


def _require_channels(experiment: Experiment, checkpoint: Checkpoint) -> None:
    folder, channels = checkpoint.folder, checkpoint[Component.VAE].json.get("input_channels", 3)
    if experiment.stage is Stage.RGBA_VAE:
        if channels not in (3, 4):
            raise ExperimentError(f"{folder}: its VAE has {channels} channels, {experiment.stage} starts from 3 or 4")
    elif channels != 4:
        raise ExperimentError(
            f"{folder}: its VAE has {channels} channels, {experiment.stage} needs an RGBA-VAE: train the stage "
            f"rgba_vae first and set start.vae to its checkpoint/"
        )


def origin_of(folder: Path) -> Stage | None:
    """The stage that wrote a checkpoint, which trained its transformer or its VAE; None if no stage wrote it.

    Raises:
      ExperimentError: if the file that names the stage is invalid.
    """
    file = folder / ORIGIN
    if not file.is_file():
        return None
    fix = "give another checkpoint, or remove the file if no stage wrote this one"
    try:
        return Stage(read_json(file, fix=fix)["stage"])
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{file}: names no stage ({error}): {fix}") from error
