"""Metrics of a run: means over steps, throughput, and time accounting."""

import time
from collections.abc import Mapping
from enum import StrEnum

import jax
import numpy as np

from qil_jax.files import AnyPath
from qil_jax.training.experiment import Experiment
from qil_jax.training.flops import peak_flops
from qil_jax.training.settings import to_json
from qil_jax.training.sinks import open_sinks
from qil_jax.training.step import StepMetrics


class Spent(StrEnum):
    """Categories of a run's time. Only STEP counts as training."""

    COMPILE = "compile"
    INPUT = "input"
    STEP = "step"
    CHECKPOINT = "checkpoint"
    VALIDATION = "validation"


class Ledger:
    """Seconds of each category of time; every entry begins at the end of the previous one.

    Steps are dispatched asynchronously, so concurrent work of the host is not counted. INPUT is the time from the end
    of a step until the inputs of the next, including their encoding, are on the devices; STEP is the time from then
    until the end of that step.
    """

    def __init__(self) -> None:
        """Start the accounting at the current time."""
        self.seconds = dict.fromkeys(Spent, 0.0)
        self._end = time.perf_counter()

    def book(self, spent: Spent, until: float | None = None) -> None:
        """Book the time from the last entry to `until` (by `perf_counter`; None: now), or zero if that is earlier."""
        until = time.perf_counter() if until is None else until
        self.seconds[spent] += max(0.0, until - self._end)
        self._end = max(self._end, until)

    def shares(self) -> dict[str, float]:
        """Fraction of the booked time in each category; `goodput` is that of STEP."""
        total = sum(self.seconds.values()) or 1.0
        shares = {f"time/{spent}": seconds / total for spent, seconds in self.seconds.items()}
        return {**shares, "goodput": self.seconds[Spent.STEP] / total}


class RunningMeans:
    """Means of the steps' metrics since the last line of metrics."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._last: dict[str, float] = {}

    def add(self, metrics: StepMetrics) -> None:
        """Add a step's metrics, waiting for the step to finish."""
        if bool(metrics.finite):
            values = {name: (getattr(metrics, name), 1) for name in ("loss", "gradient_norm", "update_norm")}
            for name, (total, count) in jax.device_get({**values, **metrics.losses.sums}).items():
                entry = self._sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(total)
                entry[1] += float(count)
        self._last = {"parameter_norm": float(metrics.parameter_norm), "skipped": int(metrics.skipped)}

    def line(self) -> dict[str, float]:
        """Return the means and reset them."""
        means = {name: total / count for name, (total, count) in self._sums.items() if count}
        self._sums = {}
        return {**means, **self._last}


class MetricsWriter:
    """A writer of metrics to all sinks, active in the first process only."""

    def __init__(self, run: AnyPath, experiment: Experiment, *, since: int, wandb: str | None = None):
        """Metrics of steps after `since` belong to an interrupted attempt. `wandb` is a project there, or None.

        Raises:
          QilError: if Weights & Biases cannot be reached.
        """
        writing = jax.process_index() == 0
        self._sinks = open_sinks(run, since=since, wandb=wandb, config=to_json(experiment)) if writing else []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        for sink in self._sinks:
            sink.write(step, values)

    def flush(self) -> None:
        """Store what was written."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Store what was written, and close all sinks."""
        for sink in self._sinks:
            sink.close()


def throughput(samples: int, tokens: int, flops: float, seconds: float) -> dict[str, float]:
    """Samples, tokens and FLOPs per second, and the fraction of the devices' peak FLOP/s (MFU) if it is known."""
    seconds = max(seconds, 1e-9)
    rates = {
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
        "tflops_per_second": flops / seconds / 1e12,
    }
    peak = peak_flops()
    return rates | ({} if peak is None else {"mfu": flops / seconds / peak})


def bad_rows(metrics: StepMetrics) -> list[int]:
    """Indices of the rows whose loss is not finite."""
    return np.flatnonzero(~np.isfinite(np.asarray(jax.device_get(metrics.losses.rows)))).tolist()
