"""Losses, gradients and one optimiser step against torch: diffusers' transformer and VAE, torch's AdamW, fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import tiny_transformer, tiny_vae
from parity_inputs import PER, flow_inputs, torch_flow_loss
from reference import error, ours

from qil_jax.flow.loss import FlowLoss, draw_sigma
from qil_jax.models.lpips import LPIPSNetwork, lpips, weight_shapes
from qil_jax.training.batches import PictureBatch
from qil_jax.training.objectives import Compute, flow_objective, row_normals, vae_objective, vae_terms
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.parameters import Network, params_of
from qil_jax.training.step import fresh_state, make_step
from qil_jax.training.vae_loss import Reconstruction, VAELoss, kl_between

SEED = 5


@pytest.mark.parametrize("microbatches", [1, pytest.param(2, marks=pytest.mark.full)])
def test_flow_loss_gradients_and_a_step_of_adamw(tmp_path, microbatches):
    reference = tiny_transformer()
    model = ours(reference, "transformer", tmp_path / "before")
    batch, loss = flow_inputs(model.config), FlowLoss(logit_mean=0.2, logit_std=1.3)
    config = OptimiserConfig(
        learning_rate=1e-2, epsilon=1e-3, weight_decay=0.1, clip_norm=0.5, accumulate=microbatches, beta2=0.95
    )
    objective = flow_objective(Network(model), loss, Compute())
    params = params_of(model)
    before = {path: np.array(x) for path, x in params.items()}
    state = fresh_state(params, config, steps=10)
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    sigma_key, noise_key = jax.random.split(key)
    shift = np.sqrt(PER / 256)
    sigma = draw_sigma(row_normals(sigma_key, batch.rows, ()), loss, shift=shift)
    noise = row_normals(noise_key, batch.rows, batch.clean.shape[1:])
    state, metrics = make_step(objective, config, steps=10, seed=SEED, like=state)(state, {}, batch)

    with torch.enable_grad():
        reference.train().requires_grad_(True)
        expected = torch_flow_loss(reference, batch, sigma, noise)
        expected.backward()
    for p in reference.parameters():  # the last block's text is read by nobody: its weights decay all the same
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    decayed = [p for n, p in reference.named_parameters() if p.ndim > 1 and "embedding" not in n.split(".")[-2]]
    others = [p for p in reference.parameters() if not any(p is d for d in decayed)]
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-3).step()
    after = params_of(ours(reference, "transformer", tmp_path / "after"))

    expected = expected.detach()
    assert abs(float(metrics.loss) - float(expected)) <= 2e-5 * float(expected)
    assert abs(float(metrics.gradient_norm) - float(norm)) <= 2e-5 * float(norm)
    moved = max(float(np.abs(np.asarray(after[path]) - before[path]).max()) for path in after)
    assert moved > 5e-3  # the step is not nothing
    for path, expected_value in after.items():
        assert error(state.params[path], expected_value) <= 2e-5, path


def torch_blend(x, background):
    a = (x[:, 3:] + 1) / 2
    return x[:, :3] * a + background * (1 - a)


def torch_vae(reference, true, noise):
    """Reconstruction with the posterior's sample, and mean and logvar of the posterior."""
    posterior = reference.encode(true[:, :, None]).latent_dist
    z = posterior.mean + torch.exp(0.5 * posterior.logvar) * noise[:, :, None]
    reference.clear_cache()
    raw = reference.decoder(reference.post_quant_conv(z), feat_cache=reference._feat_map, feat_idx=[0])[:, :, 0]
    made = raw - (raw - raw.clamp(-1, 1)).detach()  # values as clipped, gradients as if not
    return made, posterior.mean[:, :, 0], posterior.logvar[:, :, 0]


@pytest.mark.parametrize("kind", list(Reconstruction))
@pytest.mark.full
def test_losses_of_the_vae_and_their_gradients(tmp_path, kind):
    reference = tiny_vae()
    vae = ours(reference, "vae", tmp_path)
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (2, 16, 24, 4)).astype(np.uint8)
    pixels[0, :4, :, 3] = 0
    noise = random.standard_normal((2, 2, 3, 6)).astype(np.float32)
    background = random.uniform(-1, 1, (2, 3)).astype(np.float32)
    config = VAELoss(reconstruction=kind, colour=0.3, kl=1e-3, perceptual=0.0, reference_kl=0.0)
    weights = {"pixel": 1.0, "colour": 0.3, "kl": 1e-3}
    true = jnp.asarray(pixels, jnp.float32) / 127.5 - 1
    network, params = Network(vae), params_of(vae)

    def total(params):
        given = {"noise": jnp.asarray(noise), "background": jnp.asarray(background), "perceptual_loss": None}
        terms = vae_terms(network(params), true, config, **given)
        return sum(weights[name] * jnp.mean(term) for name, term in terms.items()), terms

    (value, terms), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    first = lambda x: torch.from_numpy(np.array(x)).movedim(-1, 1)
    with torch.enable_grad():
        reference.requires_grad_(True)
        x = first(true)
        made, mean, logvar = torch_vae(reference, x, first(noise))
        if kind is Reconstruction.AB_MSE:
            pa, ta = (made[:, 3:] + 1) / 2, (x[:, 3:] + 1) / 2
            p, d = made[:, :3] * pa - x[:, :3] * ta, pa - ta
            b1 = torch.tensor([-0.0357, -0.0811, -0.1797])[None, :, None, None]
            b2 = torch.tensor([0.3163, 0.3060, 0.3634])[None, :, None, None]
            pixel = (p**2 - 2 * d * b1 * p + d**2 * b2).mean((1, 2, 3))
        else:
            over = torch.from_numpy(background)[:, :, None, None]
            pixel = (torch_blend(made, over) - torch_blend(x, over)).abs().mean((1, 2, 3))
        shown = (x[:, 3:] > -1).float()
        colour = (shown * (made[:, :3] - x[:, :3]).abs()).sum((1, 2, 3)) / (3 * shown.sum((1, 2, 3)))
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)) / (16 * 24 * 3)
        expected = (pixel + 0.3 * colour + 1e-3 * kl).mean()
        expected.backward()
    for name, term in (("pixel", pixel), ("colour", colour), ("kl", kl)):
        assert error(terms[name], term) <= 2e-5, name
    expected = expected.detach()
    assert abs(float(value) - float(expected)) <= 2e-5 * abs(float(expected))
    first_conv = reference.encoder.conv_in.weight.grad[:, :, -1].permute(2, 3, 1, 0)
    last_conv = reference.decoder.conv_out.weight.grad[:, :, -1].permute(2, 3, 1, 0)
    assert error(gradients["encoder/conv_in/kernel"], first_conv) <= 1e-4
    assert error(gradients["decoder/conv_out/kernel"], last_conv) <= 1e-4


def test_blended_error_is_the_mean_over_many_backgrounds():
    """The closed form against Monte Carlo with the mean and variance that it states."""
    from qil_jax.training.vae_loss import BACKGROUND_MEAN, BACKGROUND_SQUARE, ab_mse, blend

    random = np.random.default_rng(0)
    made, true = (jnp.asarray(random.uniform(-1, 1, (1, 4, 4, 4)), jnp.float32) for _ in range(2))
    mean, square = np.array(BACKGROUND_MEAN), np.array(BACKGROUND_SQUARE)
    signs = np.sqrt(square - mean**2) * np.array([-1, 1])[:, None]  # a two-point variable of this mean and square
    backgrounds = jnp.asarray(mean + signs, jnp.float32)
    exact = np.mean([np.mean((blend(made, over) - blend(true, over)) ** 2) for over in backgrounds])
    assert float(ab_mse(made, true)[0]) == pytest.approx(exact, rel=1e-5)


@pytest.mark.full
def test_reference_divergence(tmp_path):
    """0 from the VAE that training starts with; torch's value from another one."""
    reference, other = tiny_vae(), tiny_vae(seed=9)
    vae, moved = ours(reference, "vae", tmp_path / "a"), ours(other, "vae", tmp_path / "b")
    pixels = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 4)).astype(np.uint8)
    config = VAELoss(perceptual=0.0, kl=0.0, pixel=0.0, reference_kl=1.0)
    batch = PictureBatch(pixels=jnp.asarray(pixels), weights=jnp.full(2, 0.5), rows=jnp.arange(2))
    given = {"dtype": jnp.float32, "reference": params_of(vae), "perceptual_loss": None}
    objective = jax.jit(vae_objective(Network(vae), config, **given))
    same, _ = objective(params_of(vae), {}, batch, jax.random.key(0))
    value, _ = objective(params_of(moved), {}, batch, jax.random.key(0))
    assert abs(float(same)) <= 1e-6
    x = torch.from_numpy(pixels).movedim(-1, 1) / 127.5 - 1
    expected = 0.0
    with torch.no_grad():
        for colour in (-1.0, 1.0):
            picture = torch.cat([torch_blend(x, colour), torch.ones_like(x[:, :1])], 1)[:, :, None]
            p, q = (m.encode(picture).latent_dist for m in (other, reference))
            expected += p.kl(q).sum() / len(x) / 2 / (16 * 16 * 3)
    assert abs(float(value) - float(expected)) <= 2e-5 * float(expected)
    divergence = jax.jit(lambda x: kl_between(vae.encode(x), vae.encode(x)))
    assert float(divergence(jnp.ones((1, 8, 8, 4)))[0]) == 0


def torch_lpips(weights, backbone, a, b):
    """The formula, with torch's own convolutions and pooling."""
    F = torch.nn.functional
    t = lambda name: torch.from_numpy(np.array(weights[name]))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(x):
        x = (x - shift[None, :, None, None]) / scale[None, :, None, None]
        taps = []
        if backbone is LPIPSNetwork.ALEXNET:
            plan = [(4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False)]
            for i, (stride, padding, pooled) in enumerate(plan):
                x = F.max_pool2d(x, 3, 2) if pooled else x
                x = F.relu(F.conv2d(x, t(f"conv_{i}/kernel").permute(3, 2, 0, 1), t(f"conv_{i}/bias"), stride, padding))
                taps.append(x)
            return taps
        for i in range(13):
            x = F.max_pool2d(x, 2) if i in (2, 4, 7, 10) else x
            x = F.relu(F.conv2d(x, t(f"conv_{i}/kernel").permute(3, 2, 0, 1), t(f"conv_{i}/bias"), 1, 1))
            if i in (1, 3, 6, 9, 12):
                taps.append(x)
        return taps

    total = 0.0
    for j, (f, g) in enumerate(zip(features(a), features(b), strict=True)):
        f, g = (h / (h.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for h in (f, g))
        total = total + ((f - g) ** 2 * t(f"head_{j}")[None, :, None, None]).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("backbone", list(LPIPSNetwork))
@pytest.mark.full
def test_lpips_is_torchs_formula(backbone):
    random = np.random.default_rng(0)
    shapes = weight_shapes(backbone)
    weights = {
        name: (np.abs(random.standard_normal(shape)) if name.startswith("head") else random.standard_normal(shape))
        / np.sqrt(max(1, np.prod(shape[:-1])))
        for name, shape in shapes.items()
    }
    weights = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    a, b = (random.uniform(-1, 1, (2, 64, 48, 3)).astype(np.float32) for _ in range(2))
    distance = jax.jit(lambda a, b: lpips(weights, backbone, a, b))
    found = distance(a, b)
    expected = torch_lpips(weights, backbone, *(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b)))
    assert error(found, expected) <= 2e-5
    assert np.asarray(distance(a, a)).max() == 0
    gradient = jax.jit(jax.grad(lambda x: distance(x, a).sum()))(a)
    assert np.isfinite(np.asarray(gradient)).all()  # at equal pictures, too
