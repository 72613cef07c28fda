"""The devices of this machine, as jax finds them, and what libtpu is told where there is no TPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qil_jax.errors import QilError, cut

if TYPE_CHECKING:
    import jax

PLATFORMS = "JAX_PLATFORMS"
"""The environment variable by which jax is told which devices to use."""
ABSENT_TPU = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}
"""What libtpu asks a cloud's TPU host, and complains about in six lines where there is none."""
DEV = Path("/dev")
"""The folder of the devices' files."""


def quieten_libtpu() -> None:
    """Answer for absent TPUs, so that an installed libtpu prints nothing. To be called before a device is used.

    Nothing is set on a machine with a TPU, or where the environment has answers.
    """
    said = ABSENT_TPU.keys() & os.environ.keys()
    if not (said or any(DEV.glob("accel*")) or any(DEV.glob("vfio/*"))):
        os.environ.update(ABSENT_TPU)


def find_devices() -> "list[jax.Device]":
    """The devices of all processes.

    Raises:
      QilError: if jax finds none; the message says what JAX_PLATFORMS asks for.
    """
    import jax

    with _naming_platforms():
        return jax.devices()


def host_device() -> "jax.Device":
    """The CPU of this process.

    Raises:
      QilError: if jax may not use it, or finds no device.
    """
    import jax

    with _naming_platforms():
        return jax.local_devices(backend="cpu")[0]


@contextmanager
def _naming_platforms() -> Iterator[None]:
    quieten_libtpu()
    try:
        yield
    except (AssertionError, RuntimeError) as error:  # without a word, for a platform whose plug-in is not installed
        why = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise QilError(
            f"jax cannot use the devices that {PLATFORMS}={cut(os.environ.get(PLATFORMS, ''))} asks for{why}: set it "
            "to cpu; pip install 'qil_jax[cuda]' or 'qil_jax[tpu]' brings what others need"
        ) from error
