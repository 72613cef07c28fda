"""The folder of a run: its stored experiment and its compilation cache."""

import dataclasses
import json

import jax
from etils import epath

from qil_jax.files import AnyPath, read_file, write_whole
from qil_jax.loader.config import Workers
from qil_jax.programs import called
from qil_jax.strict_json import MOST_BYTES
from qil_jax.training.disk import absolute, at
from qil_jax.training.experiment import Experiment, ExperimentError
from qil_jax.training.settings import from_json, to_json
from qil_jax.training.watchdog import FOLDER as HANG

EXPERIMENT = "experiment.json"
MAY_CHANGE = ("log_every", "checkpoints", "validation", "mesh", "give_up", "made_by")
"""Fields that may change when a run is resumed, in addition to `data.workers`."""


def check_folder(run: AnyPath, experiment: Experiment) -> None:
    """Refuse a folder that is neither absent, nor empty, nor a run of this experiment.

    Raises:
      ExperimentError: if it holds a run of another experiment, in which case the message names the differing
        settings, or something that is no run.
    """
    file = run / EXPERIMENT
    if file.is_file():
        try:
            before = from_json(read_file(file, most=MOST_BYTES))
        except ExperimentError as error:
            raise ExperimentError(f"{file} cannot be read ({error}): give another --out") from error
        differing = differences(experiment, before)
        if differing:
            raise ExperimentError(
                f"{run} is a run with other settings ({', '.join(differing)} differ from {file}): give those settings "
                f"to continue it, or another --out"
            )
    elif run.exists() and any(not _harmless(found.name) for found in run.iterdir()):
        raise ExperimentError(f"{run} holds something that is no run of {called('train')}: give another --out")


def _harmless(name: str) -> bool:
    """Whether a run that ended before it claimed its folder may have left a file or folder of this name."""
    return name == HANG or name.startswith(f".{EXPERIMENT}.")


def differences(now: Experiment, before: Experiment) -> list[str]:
    """Names of the fields whose difference prevents a run of `before` from being resumed as `now`."""
    a, b = (dataclasses.replace(e, data=dataclasses.replace(e.data, workers=Workers())) for e in (now, before))
    names = [field.name for field in dataclasses.fields(Experiment) if field.name not in MAY_CHANGE]
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def experiment_of(run: AnyPath) -> Experiment:
    """The stored experiment of a run.

    Raises:
      ExperimentError: if the folder holds no run, or its experiment cannot be read.
    """
    file = run / EXPERIMENT
    if not file.is_file():
        raise ExperimentError(
            f"{run} holds no run ({EXPERIMENT} is missing): give the folder that {called('train')} --out named"
        )
    try:
        return from_json(read_file(file, most=MOST_BYTES))
    except ExperimentError as error:
        raise ExperimentError(f"{file} cannot be read: {error}") from error


def claim(run: AnyPath, experiment: Experiment) -> None:
    """Store the experiment in the run's folder, after all checks, so that a failed start leaves it unchanged."""
    file = run / EXPERIMENT
    if jax.process_index() == 0 and not file.is_file():
        with at(file):
            write_whole(epath.Path(file), (json.dumps(to_json(experiment), indent=2) + "\n").encode())


def keep_compiled(run: AnyPath) -> None:
    """Cache compiled programs in the run's folder for fast resumption, unless the user configured another cache.

    There is no cache on CPUs, whose programs use one machine's instruction set, which JAX does not verify on loading.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None and jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", str(absolute(run) / "compiled"))
