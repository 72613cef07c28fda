"""What a run looks at now and then: the loss on records it does not train on, and pictures of what it makes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import UInt8

from qil_jax.flow import euler
from qil_jax.layers.sheets import grid
from qil_jax.loader.batch import Batch
from qil_jax.loader.loader import Loader
from qil_jax.models.latents import unpack
from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.models.vld_mmdit import VLDMMDiT
from qil_jax.training.batches import FlowBatch, PictureBatch
from qil_jax.training.disk import at
from qil_jax.training.parameters import Params
from qil_jax.training.setup import Parts

FOLDER = "samples"
SEED = 977


class Validation:
    """The validation of a run; compiled when it is first called."""

    def __init__(self, parts: Parts, loader: Loader):
        self.parts, self.loader = parts, loader
        self._loss = jax.jit(self._errors)
        self._sample = jax.jit(self._integrate)
        self._batches: list[tuple[Batch, FlowBatch | PictureBatch]] | None = None

    def __call__(self, ema_params: Params, step: int, run: Path) -> dict[str, float]:
        """The loss of the averaged parameters, always on the same batches and noise; writes RUN/samples/STEP.png."""
        if self._batches is None:
            count = min(self.parts.experiment.validation.batches, self.loader.plan.steps_per_epoch)
            self._batches = [
                (batch, self.parts.inputs(batch)) for batch, _ in zip(self.loader, range(count), strict=False)
            ]
            self.loader.close()
        sums: dict[str, list[float]] = {}
        for i, (_, batch) in enumerate(self._batches):
            found = jax.device_get(self._loss(ema_params, self.parts.frozen, batch, jnp.int32(i)))
            for name, (total, count) in found.items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(total)
                entry[1] += float(count)
        if jax.process_count() == 1:
            self._sheet(ema_params, step, run)
        return {f"validation/{name}": total / count for name, (total, count) in sums.items() if count}

    def _errors(self, params: Params, frozen: Params, batch: FlowBatch | PictureBatch, number: Array) -> dict:
        key = jax.random.fold_in(jax.random.key(SEED), number)
        batch = dataclasses.replace(batch, weights=batch.weights / jnp.sum(batch.weights))
        loss, report = self.parts.objective(params, frozen, batch, key)
        return {"loss": (loss, jnp.ones(())), **report.sums}

    def _integrate(self, params: Params, frozen: Params, batch: FlowBatch) -> Array:
        """Tokens denoised from noise, without guidance."""
        network = self.parts.network({**frozen, **params})
        assert isinstance(network, VLDMMDiT)
        steps = self.parts.experiment.validation.steps
        sigmas = jnp.repeat(jnp.linspace(1.0, 0.0, steps + 1)[:, None], len(batch.rows), axis=1)
        noise = jax.random.normal(jax.random.key(SEED), batch.clean.shape)
        kinds = batch.target_kinds if network.config.use_additional_t_cond else None

        def velocity(x: Array, sigma: Array) -> Array:
            return network(x, batch.text, batch.layout, sigma=sigma, target_kind=kinds)

        start = jnp.where(batch.is_target[..., None], noise, batch.clean)
        return euler(velocity, start, sigmas=sigmas, is_target=batch.is_target, step_inputs=sigmas[:-1])

    def _sheet(self, ema_params: Params, step: int, run: Path) -> None:
        """Rows of pictures in pairs: what is wanted, and below it what the model makes."""
        assert self._batches is not None
        batch, inputs = self._batches[0]
        count = self.parts.experiment.validation.samples
        if isinstance(inputs, PictureBatch):
            pixels = np.asarray(inputs.pixels)[: 4 * count]
            vae = self.parts.network({**self.parts.frozen, **ema_params})
            made = to_pixels(vae.decode(vae.encode(jnp.asarray(pixels, jnp.float32) / 127.5 - 1).mode()))
            pairs = [
                part for i in range(0, len(pixels), 8) for part in (list(pixels[i : i + 8]), list(made[i : i + 8]))
            ]
        else:
            pairs = self._decomposed(ema_params, batch, inputs, count)
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        sheet = folder / f"{step:08d}.png"
        with at(sheet):
            grid(pairs).save(sheet)

    def _decomposed(self, ema_params: Params, batch: Batch, inputs: FlowBatch, count: int) -> list[list[np.ndarray]]:
        vae, shape = self.parts.vae, self.parts.shape
        assert vae is not None
        pick = lambda x: x[:count]
        inputs = jax.tree.map(pick, inputs)
        made = np.asarray(self._sample(ema_params, self.parts.frozen, inputs))
        high, wide = (int(s) for s in batch.pictures.shape[2:4])
        latents = batch.pictures.dtype != np.uint8
        unit = shape.patch if latents else shape.pixels
        tokens = batch.segments.shape[1] * (high // unit) * (wide // unit)
        decode = lambda t: decoded(vae, unpack(t[:tokens], shape.patch, (high // unit, wide // unit)))
        rows = []
        for row in range(len(made)):
            shown = batch.segments[row] > 0
            rows += [list(decode(np.asarray(inputs.clean)[row])[shown]), list(decode(made[row])[shown])]
        return rows


def decoded(vae: RGBAVAE, latents: np.ndarray) -> UInt8[np.ndarray, "p y x 4"]:
    """Normalised latents to 8-bit pictures, one at a time."""
    graph, state = nnx.split(vae)
    dtype = vae.quant_conv.kernel[...].dtype
    return np.concatenate([_decode(graph, state, jnp.asarray(z[None], dtype)) for z in latents])


def _decode(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, latents: Array) -> np.ndarray:
    return to_pixels(_decode_jit(graph, state, latents))


@jax.jit(static_argnums=0)
def _decode_jit(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, latents: Array) -> Array:
    vae = nnx.merge(graph, state)
    return vae.decode(vae.denormalise(latents))


def to_pixels(pictures: Array) -> UInt8[np.ndarray, "b y x 4"]:
    """[-1, 1] to 8 bits."""
    return np.round((np.asarray(pictures, np.float32) * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
