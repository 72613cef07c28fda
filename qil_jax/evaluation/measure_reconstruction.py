"""`qil evaluate reconstruction`: reconstruction of layers by the RGBA-VAE."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.pixels import to_float
from qil_jax.errors import ProblemsError, QilError
from qil_jax.evaluation.frechet import mean_frechet_distance
from qil_jax.evaluation.job import claim
from qil_jax.evaluation.reconstruction import RGB, blended_pairs, score_pairs
from qil_jax.evaluation.report import write_reconstruction_report
from qil_jax.evaluation.samples import true_sample
from qil_jax.files import read_file
from qil_jax.inference.images import MULTIPLE, bucket_size
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.lpips import lpips, pooled_features
from qil_jax.progress import shown
from qil_jax.records.sources import RecordSource, open_source
from qil_jax.weights import Checkpoint, Component
from qil_jax.weights.lpips import load_lpips

GROUND, UPPER = "ground", "upper"
"""Categories: layers at the bottom, and those above."""
TITLE = "Reconstruction over nine backgrounds, by AlphaVAE's protocol"
NOT_RFID = "of mean-pooled last features of LPIPS's backbone: not the paper's rFID, which takes Inception's"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Settings of the measurement of reconstructions.

    Attributes:
      records: path of a dataset, or of folders of PNGs.
      split: split of the dataset.
      out: folder to which the report is written.
      checkpoint: folder of the checkpoint whose RGBA-VAE is measured.
      count: number of layers to measure, taken from the first records.
      size: resolution of the bucket in pixels; None keeps the records' own sizes.
      batch: number of layers encoded and decoded together.
      lpips: file of LPIPS weights; None omits LPIPS.
      dtype: compute precision; None takes the precision of the stored weights.
      mesh: sizes of mesh axes, such as "data=2"; empty means the first device only.
    """

    records: str
    split: str
    out: Path
    checkpoint: Path
    count: int
    size: int | None
    batch: int
    lpips: Path | None
    dtype: str | None
    mesh: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrueLayer:
    """A layer of a record.

    Attributes:
      name: identifier made of the record's number and the layer's number in it.
      category: GROUND for the bottom layer, UPPER for all others.
      pixels: straight RGBA [height, width, 4] of the whole canvas, uint8.
    """

    name: str
    category: str
    pixels: UInt8[np.ndarray, "y x 4"]


class PerceptualMetric:
    """LPIPS and the features of the Frechet distance, from one file of weights."""

    def __init__(self, file: Path):
        weights, self.backbone = load_lpips(file)
        self._measure = jax.jit(functools.partial(_measure, weights, self.backbone))

    def __call__(self, pairs: Sequence[tuple[RGB, RGB]]) -> tuple[float, np.ndarray]:
        """Mean LPIPS distance of the pairs, and the features [pairs, 2, d] of their images."""
        pictures = to_float(np.asarray(pairs)).swapaxes(0, 1)
        distances, features = self._measure(pictures)
        return float(np.mean(distances)), np.asarray(features).swapaxes(0, 1)


def _measure(weights: Any, backbone: Any, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = pooled_features(weights, backbone, jnp.concatenate(list(pictures)))
    return lpips(weights, backbone, *pictures), features.reshape(2, pictures.shape[1], -1)


def score_reconstructions(job: Reconstruction) -> str:
    """Reconstruct the first layers of a split, and write the report.

    Raises:
      QilError: before any compute, if records, checkpoint or weights cannot be used, or OUT holds something else.
    """
    source = open_source(job.records, job.split)
    sizes = sizes_of(source, job)
    checkpoint = Checkpoint.open(job.checkpoint)
    perceptual = None if job.lpips is None else PerceptualMetric(job.lpips)
    claim(job.out, identity(job, checkpoint, source))
    autoencoder = load_autoencoder(job, checkpoint)
    rows, features = [], {}
    layers = reconstructed(true_layers(source, sizes, job.count), job.batch, autoencoder)
    total = min(job.count, int(source.metadata().layers.sum()))
    for layer, made in shown(layers, total, "reconstructing"):
        pairs = blended_pairs(made, layer.pixels)
        scores = score_pairs(pairs)
        if perceptual is not None:
            scores["lpips"], found = perceptual(pairs)
            features.setdefault(layer.category, []).append(found)
        rows.append((layer.name, layer.category, scores))
    settings = {"checkpoint": job.checkpoint.resolve().name, "split": job.split, "layers": len(rows)}
    settings |= {"size": job.size or "the records' own", "dtype": job.dtype or "as stored"}
    if perceptual is not None:
        settings |= {"lpips": perceptual.backbone.value, "frechet": NOT_RFID}
    distances = {
        category: mean_frechet_distance(*np.stack(found).transpose(2, 0, 1, 3))
        for category, found in features.items()
        if len(found) > 1
    }
    return write_reconstruction_report(job.out, TITLE, rows, settings, distances)


def sizes_of(source: RecordSource, job: Reconstruction) -> list[tuple[int, int]]:
    """Width and height at which each record's layers are measured, for as many records as are needed.

    Raises:
      ProblemsError: listing records that are too small or too narrow.
    """
    sizes, problems = [], []
    metadata, found = source.metadata(), 0
    for number, (width, height) in enumerate(metadata.sizes.tolist()):
        if found >= job.count:
            break
        found += int(metadata.layers[number])
        try:
            if job.size is None and min(width, height) < MULTIPLE:
                raise QilError(f"{source.name(number)}: {width} x {height} pixels: below {MULTIPLE}, give --size")
            own = width // MULTIPLE * MULTIPLE, height // MULTIPLE * MULTIPLE
            sizes.append(own if job.size is None else bucket_size(width, height, job.size, name=source.name(number)))
        except QilError as error:
            problems.append(str(error))
    if problems:
        raise ProblemsError("records that cannot be measured", problems)
    return sizes


def identity(job: Reconstruction, checkpoint: Checkpoint, source: RecordSource) -> dict[str, Any]:
    """All settings that determine the result, as JSON values."""
    names = ("split", "count", "size", "dtype")
    return {
        "verb": "reconstruction",
        "records": hashlib.sha256(source.metadata().rows.tobytes()).hexdigest()[:16],
        **{name: getattr(job, name) for name in names},
        "vae": checkpoint.fingerprint(Component.VAE),
        "lpips": None if job.lpips is None else hashlib.sha256(read_file(job.lpips)).hexdigest()[:16],
    }


def load_autoencoder(job: Reconstruction, checkpoint: Checkpoint) -> Autoencoder:
    """Load the RGBA-VAE of the checkpoint.

    Raises:
      QilError: if it has no alpha channel.
    """
    channels = checkpoint.vae.input_channels
    if channels != 4:
        raise QilError(f"{job.checkpoint}: its VAE has {channels} channels, not the 4 of RGBA")
    mesh = make_mesh(MeshShape.parse(job.mesh)) if job.mesh else single_device_mesh()
    vae = checkpoint.load(Component.VAE, Sharding(mesh, INFERENCE_RULES), dtype=job.dtype)
    return Autoencoder(vae, mesh=mesh)


def true_layers(source: RecordSource, sizes: Sequence[tuple[int, int]], count: int) -> Iterator[TrueLayer]:
    """The first layers with visible pixels, record by record, bottom to top."""
    found = 0
    for number, size in enumerate(sizes):
        for place, pixels in enumerate(true_sample(source[number], size).layers):
            if found == count:
                return
            found += 1
            category = UPPER if place else GROUND
            yield TrueLayer(name=f"{number:05d}/{place:03d}", category=category, pixels=pixels)


def reconstructed(
    layers: Iterator[TrueLayer], batch: int, autoencoder: Autoencoder
) -> Iterator[tuple[TrueLayer, Float[np.ndarray, "y x 4"]]]:
    """Each layer with its reconstruction; layers of one size are encoded and decoded together."""
    for group in grouped(layers, batch):
        pixels = to_float(np.stack([layer.pixels for layer in group]))
        yield from zip(group, autoencoder.decode(autoencoder.encode(pixels)), strict=True)


def grouped(layers: Iterator[TrueLayer], batch: int) -> Iterator[list[TrueLayer]]:
    """Consecutive layers of one size, `batch` of them at most."""
    group: list[TrueLayer] = []
    for layer in layers:
        if group and (len(group) == batch or group[0].pixels.shape != layer.pixels.shape):
            yield group
            group = []
        group.append(layer)
    if group:
        yield group
