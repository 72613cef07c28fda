"""Checkpoints of the training state by orbax, written asynchronously and verified by checksums when read.

RUN/experiment.json                 what is trained
RUN/checkpoints/STEP/state          parameters, their EMA, optimiser state, counters
RUN/checkpoints/STEP/position       loader's state, and checksums of every array of the state
"""

import json
import warnings
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from qil_jax.errors import QilError
from qil_jax.files import AnyPath
from qil_jax.mesh import gathered
from qil_jax.training.disk import CHECKPOINTS, absolute, free_bytes, move_folder
from qil_jax.training.experiment import CheckpointConfig
from qil_jax.training.parameters import copied
from qil_jax.training.state_tree import checksums, state_of, state_tree
from qil_jax.training.step import TrainState

STATE, POSITION = "state", "position"
DAMAGED = "damaged"
DAMAGE_STATUSES = ("DATA_LOSS:", "NOT_FOUND:", "OUT_OF_RANGE:", "FAILED_PRECONDITION:")
"""Prefixes of tensorstore's error messages for damaged files."""
NO_STEP = -1
"""Value that stands for the newest step if there is no checkpoint."""
MARGIN = 1.1
"""Upper bound of the ratio between a checkpoint's size on disk and the bytes of its arrays."""


class CheckpointError(QilError):
    """A run cannot be continued or its state cannot be saved. The message gives the cause, the path and the fix."""


class DamagedError(CheckpointError):
    """A checkpoint differs from the saved state. The message names the difference."""


class SaveError(CheckpointError):
    """The state could not be saved; earlier checkpoints are intact. The message gives the path and the cause."""


def of_all(value: int) -> list[int]:
    """The values of all processes, in the order of the processes; all must call this function."""
    return gathered(np.asarray(value, np.int32)).tolist()


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: AnyPath, config: CheckpointConfig, *, gather: Callable[[int], list[int]] = of_all):
        """`gather` returns the values of all processes, in the order of the processes."""
        self._gather = gather
        self.folder = absolute(run / CHECKPOINTS)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep_last,
            keep_period=config.keep_every or None,
            enable_async_checkpointing=True,
            create=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=(STATE, POSITION))

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in increasing order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, loader: dict[str, Any]) -> None:
        """Begin to write a state asynchronously. It is copied first, so its buffers may be donated afterwards.

        Raises:
          SaveError: if the disk has too little space, or an earlier save failed; existing checkpoints stay intact.
        """
        self._require_room(state)
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        position = {"loader": loader, "checksums": checksums(state)}
        tree = state_tree(state)
        if jax.default_backend() == "cpu":
            tree = copied(tree)  # on a CPU orbax makes no copy, and would read buffers that the next step overwrites
        try:
            items = ocp.args.Composite(state=ocp.args.StandardSave(tree), position=ocp.args.JsonSave(position))
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise SaveError(f"{self.folder}: step {step} could not be saved: {error}") from error

    def wait(self) -> None:
        """Wait until all begun checkpoints are on disk.

        Raises:
          SaveError: if a checkpoint could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # any exception of the writing threads
            raise SaveError(f"{self.folder}: a checkpoint could not be written: {error}") from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest intact state, sharded like `like`, and the loader's state; None if there is no checkpoint.

        All processes must call this function; they agree on the step. A checkpoint that any process cannot read, or
        whose checksums do not match, is renamed with a warning.

        Raises:
          CheckpointError: if there are checkpoints but none is intact, or processes see different ones.
          OSError: if reading fails for another reason than a missing file.
        """
        tried = []
        while (step := self._newest()) is not None:
            tried.append(step)
            try:
                return self._read(step, like)
            except DamagedError as error:
                aside = self._set_aside(step)
                warnings.warn(f"checkpoint {step} is damaged and now lies in {aside}: {error}", stacklevel=2)
        if tried:
            raise CheckpointError(f"{self.folder}: no checkpoint of steps {tried[::-1]} can be read: begin a new run")
        return None

    def close(self) -> None:
        """Wait for checkpoints that are being written, and end the writing threads.

        Raises:
          SaveError: if a checkpoint could not be written.
        """
        try:
            self._manager.close()
        except Exception as error:  # as in `wait`
            raise SaveError(f"{self.folder}: a checkpoint could not be written: {error}") from error

    def _newest(self) -> int | None:
        """The step of the newest checkpoint, on which all processes agree."""
        newest = max(self.steps(), default=NO_STEP)
        seen = self._gather(newest)
        if len(set(seen)) > 1:
            raise CheckpointError(
                f"{self.folder}: the newest checkpoint is not the same for all processes ({seen}, {NO_STEP} is none): "
                f"give --out a folder that all of them share"
            )
        return None if newest == NO_STEP else newest

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The training state and the loader's state of a checkpoint.

        Raises:
          DamagedError: in all processes, if any of them finds the checkpoint damaged.
        """
        restored, fault = None, ""
        try:
            restored = _restored(epath.Path(self.folder) / str(step), like)
        except Exception as error:
            if not is_damage(error):
                raise
            fault = str(error).splitlines()[0][:300]
        self._require_all(restored is not None, fault)
        assert restored is not None
        state, position = restored
        found, wanted = checksums(state), position["checksums"]
        wrong = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        self._require_all(
            not wrong, f"{len(wrong)} arrays differ from what was saved, {', '.join(wrong[:3])} among them"
        )
        return state, position["loader"]

    def _require_all(self, sound: bool, fault: str) -> None:
        """Raise DamagedError in every process unless all of them find the checkpoint intact."""
        if not all(self._gather(int(sound))):
            raise DamagedError("another process cannot read it" if sound else fault)

    def _set_aside(self, step: int) -> AnyPath:
        aside = self.folder.parent / DAMAGED / str(step)
        if jax.process_index() == 0:
            if aside.exists():
                epath.Path(aside).rmtree()
            move_folder(self.folder / str(step), aside)
        self._gather(step)  # no process continues before the folder is renamed
        self._manager.reload()
        return aside

    def _require_room(self, state: TrainState) -> None:
        needed = MARGIN * sum(x.nbytes for x in jax.tree.leaves(state_tree(state)))
        free = free_bytes(self.folder)
        if free is not None and needed > free:
            raise SaveError(
                f"{self.folder}: a checkpoint needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free: make room"
            )


def is_damage(error: BaseException) -> bool:
    """Whether reading failed because files of a checkpoint are missing, truncated or changed.

    Missing files and invalid JSON have specific exceptions; tensorstore raises ValueErrors that begin with a status
    code; orbax re-raises some of these as the cause of a bare Exception.
    """
    if isinstance(error, FileNotFoundError | json.JSONDecodeError | UnicodeDecodeError | DamagedError):
        return True
    if isinstance(error, ValueError):
        return str(error).startswith(DAMAGE_STATUSES)
    return type(error) is Exception and error.__cause__ is not None and is_damage(error.__cause__)


def _restored(folder: epath.Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """State and position of a checkpoint, read by this process alone; orbax's manager would wait for the others."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_tree(like))
    with closing(ocp.StandardCheckpointHandler()) as states:
        tree = states.restore(folder / STATE, args=ocp.args.StandardRestore(abstract))
    return state_of(tree, like), read_position(folder)


def read_position(folder: epath.Path) -> dict[str, Any]:
    """The loader's state `loader` and the `checksums` of all arrays in the folder of a checkpoint.

    Raises:
      DamagedError: if they are not there.
    """
    with closing(ocp.JsonCheckpointHandler()) as positions:
        position = positions.restore(folder / POSITION, args=ocp.args.JsonRestore())
    if not isinstance(position, dict) or not all(isinstance(position.get(x), dict) for x in ("loader", "checksums")):
        raise DamagedError("the loader's position is not there")
    return position
