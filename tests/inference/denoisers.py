"""A tiny transformer of 8 heads with random weights, and a batch for it, without a checkpoint."""

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qil_jax.choices import Passes
from qil_jax.flow import Rescale
from qil_jax.inference.batch import Item, SequenceBatch, Ways, build_batch
from qil_jax.inference.denoiser import Denoiser
from qil_jax.kernels import Spread, attend_for
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, place, shardings
from qil_jax.models.attention import Attend, AttentionKind
from qil_jax.models.paths import slashed
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT

CONFIG = MMDiTConfig(
    num_layers=2,
    num_attention_heads=8,
    attention_head_dim=16,
    joint_attention_dim=40,
    in_channels=24,
    out_channels=6,
    axes_dims_rope=(4, 6, 6),
    use_additional_t_cond=True,
    use_layer3d_rope=True,
)


def model() -> VLDMMDiT:
    return VLDMMDiT(CONFIG, rngs=nnx.Rngs(0))


def mesh_of(text: str) -> Mesh:
    shape = MeshShape.parse(text)
    return make_mesh(shape, jax.devices()[: shape.devices])


def item(layers: int, h: int, w: int, words: int, *, seed: int = 0, steps: int = 3, guided: bool = True) -> Item:
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    return Item(
        noise=draw(layers + 1, h, w, 6),
        condition=draw(h, w, 6),
        prompt=draw(words, 40),
        negative=draw(5, 40) if guided else None,
        sigmas=np.linspace(1, 0, steps + 1, dtype=np.float32) ** (1 + seed),
    )


UNLIKE = (item(1, 8, 10, 7), item(3, 6, 8, 50, seed=1))
"""Two pictures of unlike sizes, layer counts, prompts and schedules."""


def on(mesh: Mesh) -> Sharding:
    return Sharding(mesh, INFERENCE_RULES)


def attend(mesh: Mesh, spread: Spread = Spread.ULYSSES) -> Attend:
    heads = CONFIG.num_attention_heads
    return attend_for(AttentionKind.XLA_CHUNKED, spread, heads=heads, sharding=on(mesh))


def denoiser_on(mesh: Mesh, *, passes: Passes = Passes.BATCH, spread: Spread = Spread.ULYSSES) -> Denoiser:
    network = model()
    place(network, on(mesh))
    return Denoiser(network, sharding=on(mesh), attend=attend(mesh, spread), passes=passes)


def abstract_denoiser(mesh: Mesh) -> Denoiser:
    network = nnx.eval_shape(model)
    by_path = shardings(network, on(mesh))
    state = nnx.state(network, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        parameter.set_value(jax.ShapeDtypeStruct(parameter.shape, np.float32, sharding=by_path[slashed(path)]))
    nnx.update(network, state)
    return Denoiser(network, sharding=on(mesh), attend=attend(mesh))


def batch_on(mesh: Mesh, items=UNLIKE, *, passes: Passes = Passes.BATCH, guidance: float = 4.0) -> SequenceBatch:
    return build_batch(list(items), patch=2, guidance=guidance, ways=Ways.of(on(mesh), passes))


def denoise(denoiser: Denoiser, batch: SequenceBatch, items=UNLIKE, **callbacks) -> np.ndarray:
    tables = [denoiser.modulator(one.sigmas) for one in items]
    return denoiser(batch, tables, rescale=Rescale.NORM, **callbacks)
