"""Reading of a run's checkpoint without a mesh, one array at a time."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from qil_jax.models.paths import dotted
from qil_jax.training.checkpoints import STATE, CheckpointError, DamagedError, is_damage, read_position
from qil_jax.training.disk import CHECKPOINTS, saved_steps
from qil_jax.training.state_tree import Weights, checksum


class SavedParams(Mapping[str, np.ndarray]):
    """The trained parameters of a run's checkpoint by path; each is read and verified when it is accessed.

    A checkpoint is never changed by this class, so the run may go on meanwhile.
    """

    def __init__(self, run: Path, step: int | None = None, weights: Weights = Weights.EMA):
        """Open the checkpoint of a step, by default of the newest.

        Raises:
          CheckpointError: if there is no such checkpoint, or its checksums cannot be read.
        """
        self._steps = saved_steps(run)
        folder = run.resolve() / CHECKPOINTS
        if not self._steps:
            raise CheckpointError(f"{folder}: no checkpoint is there yet: let the run go on")
        self.step = self._steps[-1] if step is None else step
        if self.step not in self._steps:
            raise CheckpointError(f"{folder}: there is no step {step}: give one of {_listed(self._steps)}")
        self._folder, self._weights = epath.Path(folder) / str(self.step), weights
        with self._naming_others():
            sums = read_position(self._folder)["checksums"]
        before, after = f"['{weights}']['", "']"
        self._sums = {
            name.removeprefix(before).removesuffix(after).replace(".", "/"): int(value)
            for name, value in sums.items()
            if name.startswith(before)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def __contains__(self, path: object) -> bool:
        return path in self._sums

    def __getitem__(self, path: str) -> np.ndarray:
        wanted, name = self._sums[path], dotted(path)
        with self._naming_others():
            values = self._read(name)
            if checksum(values) != wanted:
                raise DamagedError(f"{name} differs from what was saved")
            return values

    def _read(self, name: str) -> np.ndarray:
        with closing(ocp.PyTreeCheckpointHandler()) as handler:
            args = ocp.args.PyTreeRestore(
                item={self._weights.value: {name: 0}},
                restore_args={self._weights.value: {name: ocp.RestoreArgs(restore_type=np.ndarray)}},
                partial_restore=True,
            )
            return handler.restore(self._folder / STATE, args=args)[self._weights.value][name]

    @contextmanager
    def _naming_others(self) -> Iterator[None]:
        """Convert damage that the block finds into an error that names the run's other steps."""
        try:
            yield
        except Exception as error:
            if not is_damage(error):
                raise
            others = [step for step in self._steps if step != self.step]
            instead = f"give another step, {_listed(others)}" if others else "there is no other"
            raise CheckpointError(
                f"{self._folder} is damaged ({str(error).splitlines()[0][:300]}): {instead}"
            ) from error


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))
