"""Rewriting of a component's tensors piece by piece: a few pieces of 8 MiB are in memory at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped

from qil_jax.weights.pieces import Rows
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan
from qil_jax.weights.tables.entries import Component

THREADS = 2

Result = TypeVar("Result")
Rewrite = Callable[[Rows], Iterable[tuple[str, Shaped[np.ndarray, "..."]]]]
"""A function from rows of a stored tensor to rows, at the same index, of tensors by name."""


def write_rows(
    folder: Path,
    component: Component,
    plans: list[TensorPlan],
    pieces: Iterable[Rows],
    rewrite: Rewrite,
    on_bytes: Callable[[int], None],
) -> None:
    """Write a component's safetensors to a checkpoint folder.

    Args:
      folder: checkpoint folder that holds a folder of the component.
      component: component to write.
      plans: tensors of the files.
      pieces: rows of all stored tensors.
      rewrite: function whose results are written; it runs in several threads.
      on_bytes: callback with the number of stored bytes that were rewritten since the last call.
    """
    with closing(ShardedWriter(folder / component, component.stem, plans)) as writer:

        def work(rows: Rows) -> int:
            for name, values in rewrite(rows):
                writer.write(name, values, first=rows.first)
            return rows.values.nbytes

        for done in in_threads(work, pieces):
            on_bytes(done)


def in_threads(work: Callable[[Rows], Result], pieces: Iterable[Rows]) -> Iterator[Result]:
    """The results of `work` in the order of the pieces, few of which are under way at a time."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        running = deque()
        for piece in pieces:
            running.append(pool.submit(work, piece))
            if len(running) > THREADS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
