"""A page without a checkpoint, whose decompositions end when a test says so.

python offering.py FOLDER PORT ROOT_PATH
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from waiting import HANGS

from qil_jax.app.limits import Limits
from qil_jax.app.page import Served
from qil_jax.app.start import storage
from qil_jax.app.streams import Streams
from qil_jax.errors import QilError
from qil_jax.inference.defaults import Defaults

RELEASED, IMPATIENT = "released", "impatient"
"""Files by which a test says that decompositions end, and that nobody waits for a client to listen."""
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


class Patient(Streams):
    """Streams that are waited for until a file is there."""

    def __init__(self, folder: Path):
        super().__init__()
        self._file = folder / IMPATIENT

    @property
    def patience(self) -> float:
        """Seconds, none at all or far more than a test takes."""
        return 0.0 if self._file.exists() else HANGS


def main(folder: Path, port: int, root_path: str) -> None:
    """Serve; a decomposition says that it began and ended."""
    from qil_jax.app.server import serve, work_folder

    def held(*_: Any, is_wanted: Callable[[], bool], **__: Any) -> Path:
        print("begun", flush=True)
        while is_wanted() and not (folder / RELEASED).exists():
            threading.Event().wait(0.01)
        print("ended" if is_wanted() else "abandoned", flush=True)
        raise QilError("this was a test")

    with work_folder(folder / "work") as work:
        serve(offered(work, held, Patient(folder)), host="127.0.0.1", port=port, root_path=root_path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
