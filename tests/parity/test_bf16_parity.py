"""bf16, the released precision: no further from fp32 than diffusers and transformers are in bf16.

All three sides have the same weights and inputs, rounded to bf16. What is compared is the mean error, because a largest
one is the luck of a single rounding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import (
    EVEN_TEXT,
    EVEN_TRANSFORMER,
    build_tiny_checkpoint,
    layers_of,
    randomise,
    tiny_text_encoder,
    tiny_transformer,
    tiny_vae,
)
from diffusers import AutoencoderKLQwenImage
from flax import nnx
from parity_inputs import (
    PER,
    channels_last,
    flow_inputs,
    layered,
    layout,
    mixed,
    noise,
    picture,
    pixels,
    torch_flow_loss,
)
from reference import in_bf16, mean_error, ours

from qil_jax.flow.loss import FlowLoss
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh
from qil_jax.training.objectives import Compute, draw_sigma, flow_objective, row_normals
from qil_jax.training.parameters import Network, params_of

torch.set_grad_enabled(False)
pytestmark = pytest.mark.usefixtures("small_bucket")
MOST = 1.2
"""Our mean error over the reference's own."""
BF16 = jnp.bfloat16


def jnp_bf16(x: torch.Tensor) -> jax.Array:
    return jnp.asarray(x.float().numpy()).astype(BF16)


def transformer_errors(reference, folder, grid, layers, words) -> tuple[float, float]:
    """Our mean error and the reference's, of two samples at unlike noise levels, one with padded text."""
    rounded, wide = in_bf16(reference)
    model, config = ours(rounded, "transformer", folder), reference.config
    random = torch.Generator().manual_seed(11)
    x = torch.randn(2, len(layers) * grid[0] * grid[1], config.in_channels, generator=random).bfloat16()
    text = torch.randn(2, words, config.joint_attention_dim, generator=random).bfloat16()
    mask = torch.ones(2, words, dtype=torch.bool)
    mask[1, words - 2 :] = False
    sigma, kind = torch.tensor([0.7, 0.31]).bfloat16(), torch.tensor([0, 1])

    def velocity(module, dtype) -> np.ndarray:
        out = module(
            hidden_states=x.to(dtype),
            encoder_hidden_states=text.to(dtype),
            encoder_hidden_states_mask=mask,
            timestep=sigma.to(dtype),
            img_shapes=[[(1, *grid)] * len(layers)] * 2,
            additional_t_cond=kind,
            return_dict=False,
        )[0]
        return out.float().numpy()

    graph, state = nnx.split(model)
    run = jax.jit(lambda state, *a: nnx.merge(graph, state)(*a[:3], sigma=a[3], target_kind=a[4]))
    numbers = jnp.asarray(sigma.float().numpy()), jnp.asarray(kind.numpy())
    found = run(state, jnp_bf16(x), jnp_bf16(text), layout(grid, layers, mask), *numbers)
    assert found.dtype == BF16
    exact = velocity(wide, torch.float32)
    return mean_error(found, exact), mean_error(velocity(rounded, torch.bfloat16), exact)


FURTHER = [(1, (8, 6), 7), (20, (3, 4), 9), (3, (1, 2), 40), (2, (9, 9), 6)]


@pytest.mark.parametrize(
    ("count", "grid", "words"), [(3, (5, 7), 5), *(pytest.param(*sizes, marks=pytest.mark.full) for sizes in FURTHER)]
)
def test_transformer(tmp_path, count, grid, words):
    found, theirs = transformer_errors(tiny_transformer(), tmp_path, grid, layered(count), words)
    assert 0 < found <= MOST * theirs


RELEASED_VAE = pytest.param(AutoencoderKLQwenImage, (40, 32), marks=pytest.mark.slow)


@pytest.mark.parametrize(("make", "size"), [(tiny_vae, (104, 168)), RELEASED_VAE])
@pytest.mark.full
def test_rgba_vae(tmp_path, make, size):
    reference = make() if make is tiny_vae else randomise(make(input_channels=4))
    rounded, wide = in_bf16(reference)
    vae = ours(rounded, "vae", tmp_path)
    x = pixels(*size).bfloat16()
    exact = wide.encode(x.float()).latent_dist.mean
    theirs = rounded.encode(x).latent_dist.mean
    found = jax.jit(lambda x: vae.encode(x).mean)(jnp_bf16(torch.from_numpy(channels_last(x.float()))))
    assert found.dtype == BF16
    assert mean_error(found, channels_last(exact)) <= MOST * mean_error(
        channels_last(theirs.float()), channels_last(exact)
    )
    z = torch.randn(exact.shape, generator=torch.Generator().manual_seed(6)).bfloat16()
    exact, theirs = wide.decode(z.float()).sample, rounded.decode(z).sample
    found = jax.jit(vae.decode)(jnp_bf16(torch.from_numpy(channels_last(z.float()))))
    assert found.dtype == BF16
    assert mean_error(found, channels_last(exact)) <= MOST * mean_error(
        channels_last(theirs.float()), channels_last(exact)
    )


RELEASED_TEXT = {
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "num_hidden_layers": 1,
    "vocab_size": 600,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}


@pytest.mark.parametrize("changes", [{}, RELEASED_TEXT], ids=["tiny", "released width"])
@pytest.mark.full
def test_language_model(tmp_path, changes):
    rounded, wide = in_bf16(tiny_text_encoder(**changes))
    encoder = ours(rounded, "text_encoder", tmp_path)
    lengths = np.array([39, 17, 40])
    ids = np.random.default_rng(3).integers(0, 500, (3, 40))
    mask = np.arange(40) < lengths[:, None]

    def states(module) -> np.ndarray:
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}
        return module.model(**given, output_hidden_states=True).hidden_states[-1].float().numpy()[mask]

    found = encoder(jnp.asarray(ids), jnp.asarray(mask))
    assert found.dtype == BF16
    exact = states(wide)
    assert 0 < mean_error(np.asarray(found, np.float32)[mask], exact) <= MOST * mean_error(states(rounded), exact)


@pytest.mark.full
def test_gradients(tmp_path):
    """Of the training loss: fp32 parameters cast for compute, against a module that is bf16 throughout."""
    rounded, wide = in_bf16(tiny_transformer())
    model = ours(wide, "transformer", tmp_path)
    batch, loss, key = flow_inputs(model.config), FlowLoss(), jax.random.key(5)
    batch = dataclasses.replace(batch, weights=batch.weights / batch.weights.sum())
    sigma_key, noise_key = jax.random.split(key)
    sigma = draw_sigma(row_normals(sigma_key, batch.rows, ()), loss, shift=np.sqrt(PER / 256))
    noise = row_normals(noise_key, batch.rows, batch.clean.shape[1:])

    def gradients(dtype) -> dict[str, np.ndarray]:
        objective = flow_objective(Network(model), loss, Compute(dtype=dtype))
        return jax.device_get(jax.jit(jax.grad(lambda p: objective(p, {}, batch, key)[0]))(params_of(model)))

    def gradients_there(module, name: str) -> dict[str, jax.Array]:
        with torch.enable_grad():
            torch_flow_loss(module.requires_grad_(True), batch, sigma, noise).backward()
        for parameter in module.parameters():  # the last block's text is read by nobody
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        return params_of(ours(module.float(), "transformer", tmp_path / name))

    found, exact = gradients(BF16), gradients(jnp.float32)
    theirs, check = gradients_there(rounded, "rounded"), gradients_there(wide, "wide")
    assert {x.dtype.name for x in found.values()} == {"float32"}
    sizes = {path: float(np.abs(x).mean()) for path, x in exact.items() if x.any()}
    far = lambda side: np.array([mean_error(side[path], exact[path]) / size for path, size in sizes.items()])
    assert len(sizes) > 30 and far(check).max() <= 1e-4  # without rounding both sides are one
    assert 0 < far(found).mean() <= MOST * far(theirs).mean()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The folder in bf16 with diffusers' pipeline on it, and one in fp32 of the same weights with its pipeline."""
    folders = [tmp_path_factory.mktemp(name) for name in ("bf16", "fp32")]
    narrow = build_tiny_checkpoint(folders[0], transformer=EVEN_TRANSFORMER, text=EVEN_TEXT)
    wide = build_tiny_checkpoint(folders[1], transformer=EVEN_TRANSFORMER, text=EVEN_TEXT)
    for name in ("transformer", "vae", "text_encoder"):
        rounded, exact = in_bf16(getattr(narrow, name))
        rounded.save_pretrained(folders[0] / name)
        exact.save_pretrained(folders[1] / name)
        setattr(narrow, name, rounded)
        setattr(wide, name, exact)
    return (folders[0], narrow), (folders[1], wide)


@pytest.mark.full
def test_pipeline(checkpoints):
    """From picture to layers; latents between steps stay fp32 with us, which diffusers rounds."""
    (folder, narrow), (_, wide) = checkpoints
    image, layers, steps = picture(300, 210, clear=True), 4, 8
    start = np.asarray(jnp.asarray(noise(layers, 128, 192)).astype(BF16), np.float32)
    request = Request(image=image, layers=layers, prompt="a cat on a mat", latents=start)
    made = Pipeline.load(folder).decompose([request], Settings(steps=steps))[0]
    exact, theirs = (
        layers_of(pipeline, image, start, layers=layers, steps=steps).astype(np.float32) for pipeline in (wide, narrow)
    )
    assert exact.std() > 10, "the pictures must not be flat"
    assert 0 < mean_error(made.layered.layers, exact) <= MOST * mean_error(theirs, exact)
    rounded = np.asarray(jnp.asarray(made.latents).astype(BF16), np.float32)
    assert (rounded != made.latents).mean() > 0.9  # they never were bf16


@pytest.fixture(scope="module")
def alone(checkpoints):
    """Latents of unlike pictures, each by itself: in fp32, and how far those in bf16 are from them."""
    narrow, wide = (
        [pipeline.decompose([request], Settings(steps=3))[0].latents for request in mixed()]
        for pipeline in (Pipeline.load(folder) for folder, _ in checkpoints)
    )
    return wide, [mean_error(a, b) for a, b in zip(narrow, wide, strict=True)]


MESHES = ("", "data=8", "tensor=4,data=2", "cfg=2,tensor=4")
MORE = [pytest.param(shape, marks=pytest.mark.slow) for shape in MESHES]


@pytest.mark.parametrize("shape", ["fsdp=2,context=2,tensor=2", *MORE])
@pytest.mark.full
def test_batches_and_meshes(checkpoints, alone, shape):
    """Neighbours, padding and devices change the order of roundings, but not how much is lost by them."""
    sharding = Sharding(make_mesh(MeshShape.parse(shape)), INFERENCE_RULES) if shape else None
    together = Pipeline.load(checkpoints[0][0], sharding=sharding).decompose(mixed(), Settings(steps=3))
    for joint, exact, own in zip(together, *alone, strict=True):
        assert 0 < mean_error(joint.latents, exact) <= MOST * own
