"""Places to which a run's metrics go: a file of JSON lines, TensorBoard, and Weights & Biases.

RUN/metrics.jsonl     {"step": 120, "loss": 0.31, "loss/sigma_0": ..., "samples_per_second": ...}
RUN/wandb.json        {"PROJECT": "ID of the run there"}
"""

import importlib
import importlib.util
import json
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from etils import epath

from qil_jax.errors import QilError
from qil_jax.files import AnyPath, is_remote, read_file, write_whole
from qil_jax.strict_json import parse, read_json
from qil_jax.training.disk import at

FILE = "metrics.jsonl"
WANDB_IDS = "wandb.json"
PERIOD = 60.0
"""Seconds between two writes of the file of metrics on an object store, where nothing can be appended."""


@runtime_checkable
class Sink(Protocol):
    """A place to which metrics go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        ...

    def flush(self) -> None:
        """Store what was added."""
        ...

    def close(self) -> None:
        """Store what was added, and end."""
        ...


class LinesSink:
    """The file of JSON lines. On a local disk lines are appended.

    On an object store the file is written anew, at most every PERIOD seconds, by `flush` and at the end.
    """

    def __init__(self, run: AnyPath, *, since: int):
        """Lines of steps after `since` belong to an interrupted attempt and are removed."""
        self._file = run / FILE
        lines = read_file(self._file).decode(errors="replace").splitlines() if self._file.exists() else []
        self._lines = [text for text, line in _parsed(lines) if line["step"] <= since]
        self._appending = not is_remote(run)
        self._written = -math.inf
        self.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line."""
        clean = {name: round(value, 8) if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **clean})
        if self._appending:
            with at(self._file), Path(self._file).open("a") as stream:
                stream.write(line + "\n")
            return
        self._lines.append(line)
        if time.monotonic() - self._written > PERIOD:
            self.flush()

    def flush(self) -> None:
        """Write the file anew, unless its lines are appended."""
        if self._appending and self._written > 0:
            return
        with at(self._file):
            write_whole(epath.Path(self._file), "".join(f"{line}\n" for line in self._lines).encode())
        self._written = time.monotonic()

    def close(self) -> None:
        """Write the lines that are not written yet."""
        self.flush()


def _parsed(lines: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Complete lines and their values; a killed run may have left an incomplete one."""
    found = []
    for line in lines:
        try:
            values = parse(line)
        except QilError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            found.append((line, values))
    return found


class BoardSink:
    """TensorBoard's event files, in RUN/tensorboard."""

    def __init__(self, run: AnyPath, *, since: int):
        board = importlib.import_module("tensorboardX")  # optional dependency: extra [track]
        self._board = board.SummaryWriter(str(run / "tensorboard"), purge_step=since)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each value."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Do nothing: the files are written in the background."""

    def close(self) -> None:
        """Write and close the files."""
        self._board.close()


class WandbSink:
    """A run at Weights & Biases. A run that goes on does so under the same ID there, which its folder keeps.

    Steps between the newest checkpoint and a kill are taken again, and the values that they had first stay there.
    """

    def __init__(self, project: str, run: AnyPath, config: Mapping[str, Any]):
        """Open the run of a project; `config` is the experiment as JSON.

        Raises:
          QilError: if it cannot be opened.
        """
        wandb = importlib.import_module("wandb")  # optional dependency: extra [track]
        file = epath.Path(run / WANDB_IDS)
        fix = "remove it to begin a new run there"
        ids = read_json(file, fix=fix) if file.exists() else {}
        if not isinstance(ids, dict) or not all(isinstance(found, str) for found in ids.values()):
            raise QilError(f"{file}: does not give projects their IDs; {fix}")
        if project not in ids:
            ids[project] = uuid.uuid4().hex[:12]
            with at(run):
                write_whole(file, f"{json.dumps(ids)}\n".encode())
        where = {} if is_remote(run) else {"dir": str(run)}
        try:
            self._run = wandb.init(
                project=project, id=ids[project], resume="allow", name=run.name, config=dict(config), **where
            )
        except Exception as error:  # of the network, the login, or the settings
            raise QilError(
                f"--wandb {project}: {error}: call `wandb login`, or set WANDB_MODE=offline and sync later"
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Do nothing: a process of its own sends the values."""

    def close(self) -> None:
        """Send what is left, and end the connection."""
        self._run.finish()


def open_sinks(run: AnyPath, *, since: int, wandb: str | None, config: Mapping[str, Any]) -> list[Sink]:
    """The file of metrics, TensorBoard if it is installed, and Weights & Biases if a project is given."""
    sinks: list[Sink] = [LinesSink(run, since=since)]
    if importlib.util.find_spec("tensorboardX") is not None:
        sinks.append(BoardSink(run, since=since))
    if wandb is not None:
        sinks.append(WandbSink(wandb, run, config))
    return sinks
