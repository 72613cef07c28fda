"""Loading of config files, which are Python files that define a function `config()`."""

import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qil_jax.training.experiment import Experiment, ExperimentError
from qil_jax.training.presets import config_file
from qil_jax.training.settings import changed, require_types


def load_experiment(file: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that `config()` in a Python file returns, with overrides like "optimiser.learning_rate=1e-4".

    Args:
      file: path of the file, or name of a preset (`presets.config_file`).
      overrides: settings as NAME=VALUE.

    Raises:
      ExperimentError: if there is no such file or preset, it cannot be run or lacks the function, or an override has an
        invalid name or value.
    """
    file = config_file(file)
    experiment = called(file)
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"{file}: config() returns {type(experiment).__name__}, not an Experiment")
    try:
        require_types(experiment)
    except ExperimentError as error:
        raise ExperimentError(f"{file}: {error}") from error
    return changed(experiment, overrides)


def called(file: Path) -> Any:
    """The return value of the file's `config()`.

    Raises:
      ExperimentError: if the file lacks the function, or raises an exception; the message gives the file's line.
    """
    with _importable(file):
        try:
            config: Callable[[], Any] | None = runpy.run_path(str(file)).get("config")
            if callable(config):
                return config()
        except SyntaxError as error:
            raise ExperimentError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
            where = f"{file}, line {lines[-1]}" if lines else str(file)
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ExperimentError(f"{where}: {kind}{error}") from error
    raise ExperimentError(f"{file}: defines no function config() that returns an Experiment")


@contextmanager
def _importable(file: Path) -> Iterator[None]:
    """Make imports such as configs.demo.common work in a config, independent of the working directory."""
    roots = [str(folder.parent) for folder in file.resolve().parents if folder.name == "configs"]
    before = list(sys.path)
    sys.path[:0] = roots
    try:
        yield
    finally:
        sys.path[:] = before
