"""A run: from its last checkpoint, or from its start, to its last step; or to the signal to stop."""

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from qil_jax.errors import QilError
from qil_jax.files import write_whole
from qil_jax.loader.batch import Batch
from qil_jax.training.checkpoints import Checkpoints
from qil_jax.training.disk import at
from qil_jax.training.experiment import Experiment, ExperimentError, refusing, to_json
from qil_jax.training.inputs import sample_ids
from qil_jax.training.metrics import Averages, Ledger, MetricsWriter, Spent, bad_rows, throughput
from qil_jax.training.setup import Parts, StepBatch, prepare
from qil_jax.training.step import StepFunction, StepReport, TrainState, fresh_state, make_step
from qil_jax.training.validation import Validation

EXPERIMENT = "experiment.json"
MAY_CHANGE = ("log_every", "checkpoints", "validation", "mesh", "give_up", "made_by")
"""Fields that a run may be continued with other values of; `data.workers` too."""
Show = Callable[[int, dict[str, float]], None]
"""Called with the step and a line of metrics."""


class Outcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"


class TrainingError(QilError):
    """The loss was not finite for too many steps in a row. The message names the records."""


def train(
    experiment: Experiment,
    run: Path,
    mesh: Mesh,
    *,
    stop: Callable[[int], bool],
    show: Show,
    profile: int | None = None,
) -> tuple[Outcome, TrainState, Parts]:
    """Train, continuing what is in the folder `run`.

    Args:
      stop: asked before every step whether to save and return; it must answer alike in all processes.
      show: told of every line of metrics.
      profile: a step (of this attempt) from which on five steps are traced into RUN/profile.

    Returns:
      how it ended, the state, and the parts.

    Raises:
      ExperimentError: if the folder holds a run of something else. Whatever is refused leaves the folder as it was.
      TrainingError: after `give_up` steps in a row without a finite loss.
      CheckpointError: if no checkpoint can be read.
      RecordError: if a record cannot be read.
      SaveError, OSError: if the disk is full; the checkpoints that are there stay whole.
    """
    check_folder(run, experiment)
    parts = prepare(experiment, mesh)
    claim(run, experiment)
    keep_compiled(run)
    checkpoints = Checkpoints(run, experiment.checkpoints)
    state = fresh_state(parts.params, experiment.optimiser, experiment.steps)
    restored = checkpoints.restore(state)
    if restored is not None:
        state, position = restored
        with refusing():
            parts.loader.restore(position)
    del restored
    step = make_step(parts.objective, experiment.optimiser, steps=experiment.steps, seed=experiment.seed, like=state)
    writer = MetricsWriter(run, since=int(state.step))
    runner = _Runner(parts, run, checkpoints, writer, show, step)
    try:
        outcome, state = runner.go(state, stop, profile)
        return outcome, state, parts
    finally:
        parts.loader.close()
        checkpoints.close()
        writer.close()


def check_folder(run: Path, experiment: Experiment) -> None:
    """Refuse a folder that is not new, empty, or a run of this experiment.

    Raises:
      ExperimentError: if it is of another experiment, naming what differs, or not of any.
    """
    now = to_json(experiment)
    file = run / EXPERIMENT
    if file.is_file():
        try:
            then = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ExperimentError(f"{file} cannot be read ({error}): give another --out") from error
        changed = [name for name in now if name not in MAY_CHANGE and _fixed(now[name]) != _fixed(then.get(name))]
        if changed:
            raise ExperimentError(
                f"{run} is a run with other settings ({', '.join(changed)} differ from {file}): give those settings to "
                f"continue it, or another --out"
            )
    elif run.exists() and any(not found.name.startswith(f".{EXPERIMENT}.") for found in run.iterdir()):
        raise ExperimentError(f"{run} holds something that is no run of train.py: give another --out")


def claim(run: Path, experiment: Experiment) -> None:
    """Write down what the folder is a run of: only when all is ready, so that a failed start can be put right."""
    file = run / EXPERIMENT
    if jax.process_index() == 0 and not file.is_file():
        with at(file):
            write_whole(epath.Path(file), (json.dumps(to_json(experiment), indent=2) + "\n").encode())


def keep_compiled(run: Path) -> None:
    """Keep compiled programs in the run, so that it resumes without compiling, unless the user named a place.

    Not on CPUs: their programs are made for one machine's instructions, and nothing checks that it is still the same.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None and jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", str(run.absolute() / "compiled"))


def _fixed(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "workers"} if isinstance(value, dict) else value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Sent:
    """A step that was sent off.

    Attributes:
      ready, ended: when its inputs were on the devices, and when it was done, as `time.perf_counter` tells.
      spent: what its time counts as.
    """

    batch: Batch
    metrics: StepReport
    ready: Future[float]
    ended: Future[float]
    spent: Spent


def _when(done: Any) -> float:
    """The moment at which arrays have been computed."""
    jax.block_until_ready(done)
    return time.perf_counter()


class _Runner:
    """The loop itself. A step is sent off before the one before it is looked at, so the devices never wait for us."""

    def __init__(
        self,
        parts: Parts,
        run: Path,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        show: Show,
        step: StepFunction,
    ):
        self.parts, self.run, self.checkpoints = parts, run, checkpoints
        self.writer, self.show, self.step = writer, show, step
        self.validation = None if parts.validating is None else Validation(parts, parts.validating)
        self.averages = Averages()
        self.compiled: set[Any] = set()
        self.pending: _Sent | None = None
        self.work, self.ledger = _Work(), Ledger()

    def go(self, state: TrainState, stop: Callable[[int], bool], profile: int | None) -> tuple[Outcome, TrainState]:
        """From the state's step to the end or the stop."""
        experiment, first = self.parts.experiment, int(state.step)
        with ThreadPoolExecutor(max_workers=1) as watch:
            for done in range(first, experiment.steps):
                if stop(done):
                    self._settle()
                    self._save(state)
                    self.checkpoints.wait()
                    return Outcome.STOPPED, state
                self._trace(done - first, profile)
                batch = next(self.parts.loader)
                state = self._take(state, batch, watch)
                self._look(state, done + 1)
        self.checkpoints.wait()
        return Outcome.FINISHED, state

    def _take(self, state: TrainState, batch: Batch, watch: ThreadPoolExecutor) -> TrainState:
        """Send off a step, then look at the one before it."""
        shape = tuple(part.shape for part in vars(batch).values() if isinstance(part, np.ndarray))
        new = shape not in self.compiled
        arrived = watch.submit(_when, ())
        inputs = self.parts.inputs(batch)
        self.work.add(self.parts, batch, inputs)
        # What is compiled for a shape includes what encodes its batches.
        ready, spent = (arrived, Spent.COMPILE) if new else (watch.submit(_when, inputs), Spent.STEP)
        state, metrics = self.step(state, self.parts.frozen, inputs)
        sent = _Sent(batch=batch, metrics=metrics, ready=ready, ended=watch.submit(_when, metrics.loss), spent=spent)
        self._settle()
        self.pending = sent
        if new:
            self.compiled.add(shape)
            self._settle()
            self.work.restart()
        return state

    def _look(self, state: TrainState, done: int) -> None:
        """Metrics, validation and a checkpoint, where they are due after so many steps."""
        experiment = self.parts.experiment
        last = done == experiment.steps
        if done % experiment.log_every == 0 or last:
            self._settle()
            self._line(done)
        if self.validation is not None and (done % experiment.validation.every == 0 or last):
            self._settle()
            found = self.validation(state.ema_params, done, self.run)
            self.ledger.book(Spent.VALIDATION)
            self._tell(done, found)
            self.work.restart()
        if done % experiment.checkpoints.every == 0 or last:
            self._settle()
            self._save(state)

    def _settle(self) -> None:
        """Wait for the step that was sent off, if one was, and take in what it tells."""
        sent, self.pending = self.pending, None
        if sent is None:
            return
        self.ledger.book(Spent.INPUT, sent.ready.result())
        self.ledger.book(sent.spent, sent.ended.result())
        self.averages.add(sent.metrics)
        if not bool(sent.metrics.finite):
            self._complain(sent.batch, sent.metrics)

    def _complain(self, batch: Batch, metrics: StepReport) -> None:
        names = self._culprits(batch, metrics)
        self._tell(batch.step + 1, {"not_finite": 1.0, "failing": float(metrics.failing)})
        if int(metrics.failing) >= self.parts.experiment.give_up:
            raise TrainingError(
                f"{int(metrics.failing)} steps in a row gave no finite loss or gradient, the last with {names}: "
                f"look at these records, lower optimiser.learning_rate, or train with precision=float32"
            )

    def _culprits(self, batch: Batch, metrics: StepReport) -> str:
        """Records of rows without a finite loss; all of this process's, if each loss by itself is finite."""
        records = sample_ids(batch)
        per_row = len(metrics.report.rows) // self.parts.placement.rows  # pictures of a row, for the RGBA-VAE
        mine = {row // per_row - self.parts.placement.first for row in bad_rows(metrics)}
        chosen = [r for row in sorted(mine) if 0 <= row < len(records) for r in records[row]]
        chosen = chosen or [r for row in records for r in row]
        return ", ".join(self.parts.source.name(index) for index in chosen[:8])

    def _save(self, state: TrainState) -> None:
        self.checkpoints.save(state, self.parts.loader.state())
        self.ledger.book(Spent.CHECKPOINT)

    def _line(self, done: int) -> None:
        line = self.averages.line() | self.work.rates() | self.ledger.shares()
        self._tell(done, line)
        self.work.restart()

    def _tell(self, done: int, line: dict[str, float]) -> None:
        self.writer.write(done, line)
        self.show(done, line)

    def _trace(self, taken: int, profile: int | None) -> None:
        if profile is None:
            return
        if taken == profile:
            jax.profiler.start_trace(str(self.run / "profile"))
        elif taken == profile + 5:
            jax.profiler.stop_trace()


class _Work:
    """Samples, tokens and FLOPs since the last line."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self.samples = self.tokens = 0
        self.flops, self.since = 0.0, time.perf_counter()

    def add(self, parts: Parts, batch: Batch, inputs: StepBatch) -> None:
        """A step's work, over all processes."""
        processes = parts.placement.processes.count
        side = parts.shape.patch if batch.pictures.dtype != "uint8" else parts.shape.pixels
        per_picture = batch.pictures.shape[2] * batch.pictures.shape[3] // side**2
        self.samples += int((batch.records >= 0).sum()) * processes
        self.tokens += int((batch.segments > 0).sum()) * per_picture * processes
        self.flops += parts.flops(inputs)

    def rates(self) -> dict[str, float]:
        """Of everything since the last line."""
        return throughput(self.samples, self.tokens, self.flops, time.perf_counter() - self.since)
