"""A page without a checkpoint, whose decompositions end when a test says so.

python offering.py FOLDER PORT ROOT_PATH
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from waiting import HANGS

from qil_jax.app.limits import Limits
from qil_jax.app.page import Served
from qil_jax.app.start import storage
from qil_jax.app.streams import Streams
from qil_jax.errors import QilError
from qil_jax.export.result import write_result
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.request import JobOptions
from qil_jax.layers.layered_image import LayeredImage

RELEASED, IMPATIENT, HASTY = "released", "impatient", "hasty"
"""Files by which a test says that decompositions end, that nobody waits for a client to listen, or nobody in a full
queue."""
LIMITS = Limits(megabytes=1, disk=4, queue=2)
DEFAULTS = Defaults(layers=3, steps=12, guidance=1.0)


def refused(*_: Any, **__: Any) -> Path:
    """What decomposes nothing."""
    raise QilError("this is a test")


def offered(folder: Path, decompose: Callable[..., Path] = refused, streams: Streams | None = None) -> Served:
    """What a page serves."""
    return Served(
        decompose=decompose,
        defaults=DEFAULTS,
        captions=False,
        limits=LIMITS,
        storage=storage(folder, LIMITS),
        streams=streams or Streams(),
    )


def painted(upload: Path, folder: Path, options: JobOptions) -> Path:
    """What decomposes every picture into the same two layers."""
    layers = LayeredImage(layers=np.full((2, 8, 8, 4), 200, np.uint8), names=("ground", "figure"))
    record = {"settings": {"prompt": options.prompt}, "batch_seconds": {"denoise": 0.0}}
    write_result(folder / upload.stem, layers, layers.layers[0], record, exports=options.exports)
    return folder / upload.stem


class Patient(Streams):
    """Streams that are waited for until a file is there."""

    def __init__(self, folder: Path):
        super().__init__()
        self._file = folder / IMPATIENT

    @property
    def patience(self) -> float:
        """Seconds, none at all or far more than a test takes."""
        return 0.0 if self._file.exists() else HANGS

    @property
    def haste(self) -> float:
        """Seconds with a full queue."""
        return 0.0 if (self._file.with_name(HASTY)).exists() else self.patience


def main(folder: Path, port: int, root_path: str) -> None:
    """Serve; a decomposition says that it began and ended, and only one with a prompt makes layers."""
    from qil_jax.app.server import serve, work_folder

    def held(upload: Path, made: Path, options: JobOptions, *_: Any, is_wanted: Callable[[], bool], **__: Any) -> Path:
        print("begun", flush=True)
        while is_wanted() and not (folder / RELEASED).exists():
            threading.Event().wait(0.01)
        print("ended" if is_wanted() else "abandoned", flush=True)
        if options.prompt:
            return painted(upload, made, options)
        raise QilError("this was a test")

    with work_folder(folder / "work") as work:
        serve(offered(work, held, Patient(folder)), host="127.0.0.1", port=port, root_path=root_path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
