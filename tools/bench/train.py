"""A training step compared with one of torch and diffusers' transformer: same config, batch and precision.

Both sides hold their batch in memory, draw their own noise, and do the forward and backward pass, clipping, AdamW and
the exponential moving average of the parameters. A second row has the step that trains low-rank changes (LoRA) instead,
compared with the first one's. The time that the loader takes is one of a run's metrics (time/input).
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tools import make_demo_checkpoint as demo
from tools.bench import harness

Step = Callable[[], float]
"""Makes a step and returns its loss."""
GRID, LAYERS, WORDS = (4, 4), (0, 1, 2, 3, 4, -1), 28
RATE, CLIP, DECAY = 1e-4, 1.0, 0.999
RANK = 32


def ours(folder: Path, rows: int, *, rank: int | None = None) -> Step:
    """The training step of this package on a batch of single samples of four layers.

    Args:
      folder: checkpoint of the transformer.
      rows: number of samples.
      rank: rank of low-rank changes that are trained instead of the parameters; None: the parameters are trained.
    """
    import jax.numpy as jnp

    from qil_jax.flow.loss import FlowLoss
    from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
    from qil_jax.models.stack import Scan
    from qil_jax.models.vld_mmdit import TokenLayout
    from qil_jax.training.batches import COMPOSITE, NO_TARGET, UPPER, FlowBatch
    from qil_jax.training.lora import LoRAConfig, initial_factors
    from qil_jax.training.objectives import Compute, flow_objective
    from qil_jax.training.optimiser import OptimiserConfig
    from qil_jax.training.parameters import params_of, training_network
    from qil_jax.training.step import fresh_state, make_step
    from qil_jax.weights import Checkpoint, Component

    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    model = Checkpoint(folder).load(Component.TRANSFORMER, sharding)
    config, params, frozen = model.config, params_of(model), {}
    if rank is not None:
        LoRAConfig(rank=rank, alpha=rank).add_to(model)
        params, frozen = initial_factors(model, sharding, seed=0), params
    network = training_network(model)
    kinds = np.repeat([COMPOSITE, *[UPPER] * (len(LAYERS) - 2), NO_TARGET], GRID[0] * GRID[1]).astype(np.int32)
    tokens, text = batch_of(rows, config.in_channels, config.joint_attention_dim)
    batch = FlowBatch(
        clean=jnp.asarray(tokens),
        text=jnp.asarray(text),
        layout=TokenLayout.of(GRID, LAYERS, np.ones((rows, WORDS), np.int32)),
        weights=jnp.asarray(np.stack([kinds != NO_TARGET] * rows), jnp.float32),
        kinds=jnp.asarray(np.stack([kinds] * rows)),
        target_kinds=jnp.zeros(rows, jnp.int32),
        rows=jnp.arange(rows),
        picture_tokens=jnp.full(rows, GRID[0] * GRID[1], jnp.int32),
    )
    optimiser = OptimiserConfig(learning_rate=RATE, clip_norm=CLIP, ema_decay=DECAY)
    objective = flow_objective(network, FlowLoss(), Compute(scan=Scan(unroll=True)))
    state = fresh_state(params, optimiser, 1000)
    step = make_step(objective, optimiser, steps=1000, seed=0, like=state)

    def take() -> float:
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return float(jax.block_until_ready(metrics.loss))

    return take


def reference(folder: Path, rows: int) -> Step:
    """The training step as a torch script on diffusers would implement it."""
    model = QwenImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).train()
    assert isinstance(model, QwenImageTransformer2DModel)
    tokens, text = (torch.from_numpy(x) for x in batch_of(rows, 64, model.config["joint_attention_dim"]))
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, foreach=True)
    ema_params = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    targets = tokens.shape[1] // len(LAYERS) * (len(LAYERS) - 1)
    is_target = (torch.arange(tokens.shape[1]) < targets)[None, :, None]

    def take() -> float:
        sigma = torch.sigmoid(torch.randn(rows))
        noise = torch.randn_like(tokens)
        level = sigma[:, None, None]
        given = torch.where(is_target, (1 - level) * tokens + level * noise, tokens)
        velocity = model(
            hidden_states=given,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=torch.ones(rows, WORDS, dtype=torch.bool),
            timestep=sigma,
            img_shapes=[[(1, *GRID)] * len(LAYERS)] * rows,
            additional_t_cond=torch.zeros(rows, dtype=torch.long),
            return_dict=False,
        )[0]
        loss = ((velocity - (noise - tokens)) ** 2)[:, :targets].mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimiser.step()
        ema_params.update_parameters(model)
        return float(loss.detach())

    return take


def batch_of(rows: int, channels: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Image tokens [rows, tokens, channels] and text tokens [rows, words, width]."""
    random = np.random.default_rng(0)
    count = len(LAYERS) * GRID[0] * GRID[1]
    shapes = (rows, count, channels), (rows, WORDS, width)
    return tuple(random.standard_normal(shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `train`; returns 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo.write_component(folder, "transformer", demo.TRAIN_CONFIGS["transformer"], demo.Preset.TRAIN)
        steps = {"ours": ours(folder, arguments.rows), "reference": reference(folder, arguments.rows)}
        steps["lora"] = ours(folder, arguments.rows, rank=RANK)
        seconds = harness.alternate(steps, arguments.repeats, warmup=2)
    shown = {name: f"{harness.median(values):.3f} s" for name, values in seconds.items()}
    rows = [
        (
            f"training step, {arguments.rows} samples of 4 layers at 64 pixels",
            shown["ours"],
            shown["reference"],
            harness.times_faster(seconds["ours"], seconds["reference"]),
        ),
        (
            f"the same of low-rank changes, rank {RANK}",
            shown["lora"],
            "not measured",
            f"than ours above: {harness.times_faster(seconds['lora'], seconds['ours'])}",
        ),
    ]
    head = ("", "ours", "torch and diffusers", "times faster (lowest to highest)")
    harness.report(head, rows, write=arguments.write, mark="bench train", note=harness.machine(jax, torch))
    return 0
