"""Opening and checking of the training and validation records."""

import dataclasses

import numpy as np

from qil_jax.choices import Inputs
from qil_jax.errors import counted
from qil_jax.loader.config import LoaderConfig, Processes
from qil_jax.loader.latents import open_latents
from qil_jax.loader.loader import Loader
from qil_jax.loader.plan import Order
from qil_jax.loader.samples import RecordSamples, SampleSource
from qil_jax.loader.tasks import Task
from qil_jax.programs import called
from qil_jax.records.sources import SPLIT, SplitError, open_sources
from qil_jax.records.splits import SPLITS, records_for
from qil_jax.training.experiment import Experiment, ExperimentError, refusing

TEXT_TASKS = (Task.TEXT_TO_RGB, Task.TEXT_TO_RGBA, Task.TEXT_TO_LAYERS)


def training_data(experiment: Experiment, processes: Processes) -> tuple[SampleSource, Loader]:
    """The samples of the split `train`, and a loader that batches them."""
    config = experiment.data.loader
    source = open_data(experiment, SPLIT, config)
    check_captions(experiment, source)
    loader = _loader(experiment, source, config, processes, f"the split {SPLIT}", "add records")
    return source, loader


def validation_data(experiment: Experiment, processes: Processes) -> Loader:
    """A loader that batches the validation split in the order of its records."""
    split = experiment.validation.split
    config = dataclasses.replace(experiment.data.loader, order=Order.SEQUENTIAL)
    source = open_data(experiment, split, config)
    check_captions(experiment, source)
    where = f"the split {split}, which validation.split names,"
    instead = f"go without validation, validation.every=0{_enough(split, config.rows)}"
    return _loader(experiment, source, config, processes, where, instead)


def _loader(
    experiment: Experiment, source: SampleSource, config: LoaderConfig, processes: Processes, split: str, instead: str
) -> Loader:
    if len(source) < config.rows:
        raise ExperimentError(
            f"{', '.join(experiment.data.sources)}: {split} has {counted(len(source), 'record')}, fewer than the "
            f"{config.rows} rows of a batch: lower data.loader.rows, or {instead}"
        )
    with refusing():
        return Loader(source, config, processes=processes, workers=experiment.data.workers)


def open_data(experiment: Experiment, split: str, config: LoaderConfig) -> SampleSource:
    """The samples of a split from all sources, either pictures or cached latents.

    Raises:
      ExperimentError: if there are no sources, several sources of latents, or an unreadable source.
    """
    data = experiment.data
    if not data.sources:
        raise ExperimentError("data.sources is empty: name a folder of records, --set 'data.sources=[\"my_dataset\"]'")
    if data.inputs is Inputs.LATENTS:
        folder, *more = data.sources
        if more:
            raise ExperimentError(
                f"cached latents come from one folder: give {called('cache-latents')} all the sources"
            )
        with refusing():
            return open_latents(folder, split)
    with refusing():
        try:
            return RecordSamples(open_sources(data.sources, split), config)
        except SplitError as error:
            raise ExperimentError(f"{error}{_enough(split, config.rows)}") from error


def _enough(split: str, rows: int) -> str:
    """How many records it takes to have `rows` of them in a split, for the end of a message."""
    return f"; a dataset of {records_for(split, rows)} records has {rows} for {split}" if split in SPLITS else ""


def check_captions(experiment: Experiment, source: SampleSource) -> None:
    """Refuse records without captions if a task is conditioned on text.

    Raises:
      ExperimentError: if a record lacks a caption; the message names the tasks and the first such record.
    """
    asked = [task for task, _ in experiment.data.loader.tasks.mix if task in TEXT_TASKS]
    lengths = source.metadata().captions
    if asked and not lengths.all():
        first = source.name(int(np.argmin(lengths)))
        raise ExperimentError(
            f"{int((lengths == 0).sum())} of {len(lengths)} records have no caption, {first} the first of them, but "
            f"{', '.join(asked)} needs captions: build the dataset with captions (docs/data.md), or take the task out"
        )
