"""Metrics of a run: JSON lines, TensorBoard if it is installed, and time accounting.

RUN/metrics.jsonl     {"step": 120, "loss": 0.31, "loss/sigma_0": ..., "samples_per_second": ...}
"""

import importlib
import importlib.util
import json
import math
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from qil_jax.files import write_whole
from qil_jax.training.disk import at
from qil_jax.training.flops import peak_flops
from qil_jax.training.step import StepMetrics

FILE = "metrics.jsonl"


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
    """A writer of metrics, active in the first process only."""

    def __init__(self, run: Path, *, since: int):
        """Lines of steps after `since` belong to an interrupted attempt and are removed."""
        self._file = run / FILE
        self._writing = jax.process_index() == 0
        self._board: Any = None
        if not self._writing:
            return
        kept = [line for line in self._lines() if line["step"] <= since]
        with at(self._file):
            write_whole(epath.Path(self._file), "".join(json.dumps(line) + "\n" for line in kept).encode())
        if importlib.util.find_spec("tensorboardX") is not None:
            board = importlib.import_module("tensorboardX")  # optional dependency: extra [track]
            self._board = board.SummaryWriter(str(run / "tensorboard"), purge_step=since)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line with the metrics of a step."""
        if not self._writing:
            return
        clean = {name: round(value, 8) if math.isfinite(value) else None for name, value in values.items()}
        with at(self._file), self._file.open("a") as stream:
            stream.write(json.dumps({"step": step, **clean}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _lines(self) -> list[dict[str, Any]]:
        """The complete lines of the file; a killed run may have left an incomplete one."""
        lines = []
        for line in self._file.read_text().splitlines() if self._file.exists() else []:
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._board is not None:
            self._board.close()


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
