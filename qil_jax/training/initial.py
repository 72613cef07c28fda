"""The checkpoints from which a run starts, and what is new in its network beside these."""

import json
from collections.abc import Mapping

import jax

from qil_jax.errors import say
from qil_jax.training.experiment import Experiment
from qil_jax.weights import Checkpoint, Component, StoredComponent
from qil_jax.weights.extension import new_parts

Initial = Mapping[Component, Checkpoint]
"""The checkpoint from which each component is read or copied."""


def initial_checkpoints(experiment: Experiment) -> Initial:
    """The checkpoints from which a run starts, each folder opened once; nothing is read yet."""
    folders = {part: experiment.start.folder(part) for part in Component}
    opened = {folder: Checkpoint(folder) for folder in folders.values()}
    return {part: opened[folder] for part, folder in folders.items()}


def trained_component(experiment: Experiment, initial: Initial) -> StoredComponent:
    """What the initial checkpoint holds of the component that the run trains."""
    component = experiment.stage.component
    return initial[component][component]


def new_in_network(experiment: Experiment, initial: Initial) -> dict[str, bool | int | float]:
    """What the trained component has and the initial checkpoint has not, with its values, as `new_parts` names it.

    Raises:
      ConfigError: if the component's config is missing or invalid.
    """
    return new_parts(trained_component(experiment, initial).architecture)


def new_text(new: Mapping[str, bool | int | float]) -> str:
    """A line that names what is new in the network, with its values; empty if nothing is."""
    values = [f"{name} = {json.dumps(value)}" for name, value in new.items()]
    return f"new in the network: {', '.join(values)}" if values else ""


def report_new(new: Mapping[str, bool | int | float]) -> None:
    """Print in one process what is new in the network, if anything is."""
    text = new_text(new)
    if text and jax.process_index() == 0:
        say(text)
