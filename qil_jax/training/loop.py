"""The training loop from the newest checkpoint, or from step 0, to the last step or a stop signal."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qil_jax.errors import QilError
from qil_jax.files import AnyPath
from qil_jax.loader.batch import Batch
from qil_jax.training.checkpoints import Checkpoints
from qil_jax.training.experiment import Experiment
from qil_jax.training.initial import report_new
from qil_jax.training.inputs import sample_ids
from qil_jax.training.metrics import Ledger, MetricsWriter, RunningMeans, Spent, bad_rows, throughput
from qil_jax.training.run_folder import check_folder, claim, keep_compiled
from qil_jax.training.setup import TrainingRun, prepare
from qil_jax.training.step import StepFunction, StepMetrics, TrainState
from qil_jax.training.validation import Validation
from qil_jax.training.watchdog import Watchdog

Show = Callable[[int, dict[str, float]], None]
"""A callback with the step and a line of metrics."""


class RunStatus(StrEnum):
    """The reason why a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"


class TrainingError(QilError):
    """The loss was not finite for too many successive steps. The message names the records."""


def train(
    experiment: Experiment,
    folder: AnyPath,
    mesh: Mesh,
    *,
    stop: Callable[[int], bool],
    show: Show,
    profile: int | None = None,
    watch: Watchdog | None = None,
    wandb: str | None = None,
) -> tuple[RunStatus, TrainState, TrainingRun]:
    """Train, resuming from the newest checkpoint in `folder` if there is one.

    Args:
      stop: function that decides before each step whether to save and return, equally in all processes.
      show: callback for each line of metrics.
      profile: number of steps after the resumption at which five steps are profiled into FOLDER/profile.
      watch: watchdog that is kept informed of what the run does.
      wandb: project at Weights & Biases to which metrics are sent; None: none.

    Returns:
      The reason for the end of the run, the training state, and the prepared run.

    Raises:
      ExperimentError: if the folder holds a run of another experiment; the folder is left unchanged.
      TrainingError: after `give_up` successive steps without a finite loss.
      CheckpointError: if there are checkpoints but none can be read.
      RecordError: if a record cannot be read.
      SaveError, OSError: if the disk is full; existing checkpoints stay intact.
    """
    watch = watch or Watchdog(0.0, folder)
    check_folder(folder, experiment)
    watch.now("opening the data and loading the parameters")
    run = prepare(experiment, mesh)
    watch.now("restoring the newest checkpoint")
    claim(folder, experiment)
    report_new(run.new)
    keep_compiled(folder)
    checkpoints = Checkpoints(folder, experiment.checkpoints)
    state = run.fresh_state()
    restored = checkpoints.restore(state)
    if restored is not None:
        state, position = restored
        run.loader.restore(position)
    del restored
    step = run.step(state)
    writer = MetricsWriter(folder, experiment, since=int(state.step), wandb=wandb)
    runner = _Runner(run, folder, checkpoints, writer, show, step, watch)
    try:
        status, state = runner.go(state, stop, profile)
        return status, state, run
    finally:
        watch.now("ending the loader, and writing what was saved")
        run.loader.close()
        checkpoints.close()
        writer.close()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _PendingStep:
    """A step that was dispatched to the devices.

    Attributes:
      batch: batch of the step.
      metrics: metrics of the step, possibly still being computed.
      ready: time, by `time.perf_counter`, at which the step's inputs were on the devices.
      ended: time, by the same clock, at which the step was finished.
      spent: category to which the step's time is booked.
    """

    batch: Batch
    metrics: StepMetrics
    ready: Future[float]
    ended: Future[float]
    spent: Spent


def _when(done: Any) -> float:
    """Wait until arrays have been computed, and return the time."""
    jax.block_until_ready(done)
    return time.perf_counter()


class _Runner:
    """The training loop. A step is dispatched before the previous one's metrics are read, so devices do not idle."""

    def __init__(
        self,
        run: TrainingRun,
        folder: AnyPath,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        show: Show,
        step: StepFunction,
        watch: Watchdog,
    ):
        self.run, self.folder, self.checkpoints = run, folder, checkpoints
        self.writer, self.show, self.step, self.watch = writer, show, step, watch
        loader = run.validation_loader
        self.validation = None if loader is None else Validation(run, loader)
        self.means = RunningMeans()
        self.compiled: set[Any] = set()
        self.pending: _PendingStep | None = None
        self.work, self.ledger = _Work(), Ledger()

    def go(self, state: TrainState, stop: Callable[[int], bool], profile: int | None) -> tuple[RunStatus, TrainState]:
        """Train from the state's step until the last step or a stop."""
        experiment, first = self.run.experiment, int(state.step)
        with ThreadPoolExecutor(max_workers=1) as timing:
            for done in range(first, experiment.steps):
                self.watch.now("agreeing with the other processes whether to stop")
                if stop(done):
                    self._settle()
                    self._save(state)
                    self._wait()
                    return RunStatus.STOPPED, state
                self._trace(done - first, profile)
                self.watch.now(f"waiting for batch {done + 1} of the loader")
                batch = next(self.run.loader)
                state = self._take(state, batch, timing)
                self._after(state, done + 1)
        self._wait()
        return RunStatus.FINISHED, state

    def _take(self, state: TrainState, batch: Batch, timing: ThreadPoolExecutor) -> TrainState:
        """Dispatch a step to the devices, then read the previous one's metrics."""
        shape = tuple(part.shape for part in vars(batch).values() if isinstance(part, np.ndarray))
        new = shape not in self.compiled
        number = batch.step + 1
        self.watch.now(f"compiling step {number} for a new shape" if new else f"sending step {number} to the devices")
        arrived = timing.submit(_when, ())
        inputs = self.run.stage.inputs(batch)
        self.work.add(self.run, batch, inputs)
        # Compilation for a new shape includes the programs that encode its batches.
        ready, spent = (arrived, Spent.COMPILE) if new else (timing.submit(_when, inputs), Spent.STEP)
        state, metrics = self.step(state, self.run.frozen, inputs)
        sent = _PendingStep(
            batch=batch, metrics=metrics, ready=ready, ended=timing.submit(_when, metrics.loss), spent=spent
        )
        self._settle()
        self.pending = sent
        if new:
            self.compiled.add(shape)
            self._settle()
            self.work.restart()
        return state

    def _after(self, state: TrainState, done: int) -> None:
        """Write metrics, validate and save a checkpoint if due after `done` steps."""
        experiment = self.run.experiment
        last = done == experiment.steps
        if done % experiment.log_every == 0 or last:
            self._settle()
            self._line(done)
        if self.validation is not None and (done % experiment.validation.every == 0 or last):
            self._settle()
            with self.watch.doing(f"validating after step {done}"):
                found = self.validation(state.ema_params, done, self.folder)
            self.ledger.book(Spent.VALIDATION)
            self._report(done, found)
            self.work.restart()
        if done % experiment.checkpoints.every == 0 or last:
            self._settle()
            self._save(state)

    def _settle(self) -> None:
        """Wait for the pending step, if there is one, and add its metrics and time."""
        sent, self.pending = self.pending, None
        if sent is None:
            return
        with self.watch.doing(f"step {sent.batch.step + 1} on the devices"):
            self.ledger.book(Spent.INPUT, sent.ready.result())
            self.ledger.book(sent.spent, sent.ended.result())
            self.means.add(sent.metrics)
        if not bool(sent.metrics.finite):
            self._count_failure(sent.batch, sent.metrics)

    def _count_failure(self, batch: Batch, metrics: StepMetrics) -> None:
        names = self._bad_records(batch, metrics)
        self._report(batch.step + 1, {"not_finite": 1.0, "failing": float(metrics.failing)})
        if int(metrics.failing) >= self.run.experiment.give_up:
            raise TrainingError(
                f"{int(metrics.failing)} steps in a row gave no finite loss or gradient, the last with {names}: "
                f"look at these records, lower optimiser.learning_rate, or train with precision=float32"
            )

    def _bad_records(self, batch: Batch, metrics: StepMetrics) -> str:
        """Names of the records of rows without a finite loss, or of all rows of this process if each loss is finite."""
        records = sample_ids(batch)
        per_row = len(metrics.losses.rows) // self.run.placement.rows  # pictures of a row, for the RGBA-VAE
        mine = {row // per_row - self.run.placement.first for row in bad_rows(metrics)}
        chosen = [r for row in sorted(mine) if 0 <= row < len(records) for r in records[row]]
        chosen = chosen or [r for row in records for r in row]
        return ", ".join(self.run.source.name(index) for index in chosen[:8])

    def _save(self, state: TrainState) -> None:
        with self.watch.doing(f"saving step {int(state.step)}"):
            self.writer.flush()  # so that a kill leaves no gap in the metrics before a checkpoint
            self.checkpoints.save(state, self.run.loader.state())
        self.ledger.book(Spent.CHECKPOINT)

    def _wait(self) -> None:
        """Wait until all checkpoints are on disk."""
        self.watch.now("writing the last checkpoint")
        self.checkpoints.wait()

    def _line(self, done: int) -> None:
        line = self.means.line() | self.work.rates() | self.ledger.shares()
        self._report(done, line)
        self.work.restart()

    def _report(self, done: int, line: dict[str, float]) -> None:
        self.writer.write(done, line)
        self.show(done, line)

    def _trace(self, taken: int, profile: int | None) -> None:
        if profile is None:
            return
        if taken == profile:
            jax.profiler.start_trace(str(self.folder / "profile"))
        elif taken == profile + 5:
            jax.profiler.stop_trace()


class _Work:
    """Counts of samples, tokens and FLOPs since the last line of metrics."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Set all counts to zero and the start time to now."""
        self.samples = self.tokens = 0
        self.flops, self.since = 0.0, time.perf_counter()

    def add(self, run: TrainingRun, batch: Batch, inputs: Any) -> None:
        """Add a step's samples, tokens and FLOPs over all processes."""
        processes = run.placement.processes.count
        self.samples += int((batch.records >= 0).sum()) * processes
        self.tokens += run.stage.tokens(batch) * processes
        self.flops += run.stage.flops(inputs)

    def rates(self) -> dict[str, float]:
        """Throughput since the last line of metrics."""
        return throughput(self.samples, self.tokens, self.flops, time.perf_counter() - self.since)
