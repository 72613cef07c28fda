"""The cases of `python tools/bench models`, for this package and for the reference."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.harness import ROOT

Case = Callable[[], np.ndarray]
"""Runs the work once and returns its result on the host."""

MMDIT = {"num_layers": 4, "num_attention_heads": 8, "joint_attention_dim": 256}
SMALL_TEXT_ENCODER = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rope_scaling": {"mrope_section": [8, 12, 12], "type": "mrope"},
    "vocab_size": 512,
}
"""Values of the small text encoder's config that differ from the released config."""
GRID, PICTURES, WORDS = (16, 16), 6, 64
LAYERS, STEPS, RESOLUTION = 4, 10, 256


@functools.cache
def mmdit_config() -> dict[str, Any]:
    """Transformer config of the case MMDiT."""
    from qil_jax.weights.released import CONFIGS
    from qil_jax.weights.tables.entries import Component

    return {**CONFIGS[Component.TRANSFORMER], **MMDIT}


def write_weights(folder: Path) -> None:
    """Random checkpoints for all cases, written without torch."""
    from qil_jax.weights.released import CONFIGS
    from qil_jax.weights.tables.entries import Component
    from tools import make_demo_checkpoint as demo

    text = CONFIGS[Component.TEXT_ENCODER]
    vision = {**text["vision_config"], "depth": 1, "out_hidden_size": SMALL_TEXT_ENCODER["hidden_size"]}
    small: dict[str, dict[str, Any]] = {
        Component.TRANSFORMER: {**mmdit_config(), "num_attention_heads": 4},
        Component.VAE: {**CONFIGS[Component.VAE], "base_dim": 32},
        Component.TEXT_ENCODER: {**text, **SMALL_TEXT_ENCODER, "vision_config": vision},
    }
    demo.write_checkpoint(folder / "pipeline", small)
    demo.write_component(folder / "vae", Component.VAE, CONFIGS[Component.VAE], demo.Preset.TRY)
    demo.write_component(folder / "mmdit", Component.TRANSFORMER, mmdit_config(), demo.Preset.TRY)


def pixels() -> np.ndarray:
    """An RGBA picture [1, 256, 256, 4] in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 4)).astype(np.float32)


def latents() -> np.ndarray:
    """Latents [1, 32, 32, 16] of such a picture."""
    return np.random.default_rng(1).standard_normal((1, 32, 32, 16)).astype(np.float32)


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Image tokens [1, pictures * grid, channels] and text tokens [1, words, width]."""
    random = np.random.default_rng(2)
    count = PICTURES * GRID[0] * GRID[1]
    shapes = (1, count, mmdit_config()["in_channels"]), (1, WORDS, MMDIT["joint_attention_dim"])
    return tuple(random.standard_normal(shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


def ours(name: str, folder: Path) -> Case:
    """The case on this package, with its weights loaded."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from qil_jax.inference.pipeline import Pipeline
    from qil_jax.inference.request import Request, Settings
    from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
    from qil_jax.models.attention import AttentionKind, joint_attention
    from qil_jax.models.rope import LayerIndex
    from qil_jax.models.vld_mmdit import TokenLayout
    from qil_jax.weights import Checkpoint, Component

    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)

    def compiled(model: Any, call: Callable[..., Any]) -> Callable[..., np.ndarray]:
        graph, state = nnx.split(model)
        run = jax.jit(lambda state, *a: call(nnx.merge(graph, state), *a))
        return lambda *a: np.asarray(run(state, *a))

    if name == "end to end":
        pipeline = Pipeline.load(folder / "pipeline")
        request = Request(image=photograph(), layers=LAYERS, prompt="a cat", resolution=RESOLUTION)
        return lambda: pipeline.decompose([request], Settings(steps=STEPS))[0].layered.layers
    if name == "MMDiT":
        model = Checkpoint(folder / "mmdit").load(Component.TRANSFORMER, sharding)
        targets = PICTURES - 1
        layers = (LayerIndex.COMPOSITE, *range(1, targets), LayerIndex.CONDITION)
        layout = TokenLayout.of(GRID, layers, np.ones((1, WORDS), np.int32))
        arguments = {"sigma": jnp.full(1, 0.6), "target_kind": jnp.zeros(1, jnp.int32)}
        attend = joint_attention(AttentionKind.XLA_BY_HEAD)
        run = compiled(model, lambda m, *a: m(*a, layout, attend=attend, **arguments))
        return lambda: run(*tokens())
    vae = Checkpoint(folder / "vae").load(Component.VAE, sharding)
    if name == "VAE encode":
        run = compiled(vae, lambda vae, x: vae.encode(x).mean)
        return lambda: run(pixels())
    run = compiled(vae, lambda vae, z: vae.decode(z))
    return lambda: run(latents())


def reference(name: str, folder: Path) -> Case:
    """The case on diffusers, transformers and torch, with their own loaders."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    torch.set_grad_enabled(False)
    first = lambda x: torch.from_numpy(x.transpose(0, 3, 1, 2)[:, :, None].copy())
    last = lambda x: x[:, :, 0].permute(0, 2, 3, 1).numpy()
    if name == "end to end":
        return _reference_pipeline(folder / "pipeline")
    if name == "MMDiT":
        model: Any = QwenImageTransformer2DModel.from_pretrained(folder / "mmdit/transformer")
        image, text = map(torch.from_numpy, tokens())
        arguments = {
            "encoder_hidden_states_mask": torch.ones(1, WORDS, dtype=torch.bool),
            "timestep": torch.tensor([0.6]),
            "img_shapes": [[(1, *GRID)] * PICTURES],
            "additional_t_cond": torch.zeros(1, dtype=torch.long),
        }
        return lambda: model(image, text, **arguments).sample.numpy()
    vae: Any = AutoencoderKLQwenImage.from_pretrained(folder / "vae/vae")
    if name == "VAE encode":
        return lambda: last(vae.encode(first(pixels())).latent_dist.mean)
    return lambda: last(vae.decode(first(latents())).sample)


def _reference_pipeline(folder: Path) -> Case:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered as module
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

    # The pipeline knows two sizes only; both sides run at the same smaller one.
    buckets = module.calculate_dimensions
    module.calculate_dimensions = lambda area, ratio: buckets(RESOLUTION * RESOLUTION, ratio)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer/tokenizer.json"))
    tokenizer.pad_token = "<|endoftext|>"
    pipeline: Any = module.QwenImageLayeredPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),  # type: ignore[arg-type]
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").float(),
        tokenizer=tokenizer,  # type: ignore[arg-type]
        processor=None,  # type: ignore[arg-type]
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    pipeline.set_progress_bar_config(disable=True)

    def run() -> np.ndarray:
        pictures = pipeline(
            image=photograph(),
            prompt="a cat",
            negative_prompt=" ",
            true_cfg_scale=4.0,
            cfg_normalize=True,
            num_inference_steps=STEPS,
            layers=LAYERS,
            resolution=640,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        return np.stack([np.asarray(picture) for picture in pictures])

    return run


def photograph() -> Any:
    """The repository's example picture."""
    from PIL import Image

    return Image.open(ROOT / "examples" / "chelsea.png").convert("RGBA")


CASES = {
    "VAE decode": "released RGBA-VAE, 256 x 256",
    "VAE encode": "released RGBA-VAE, 256 x 256",
    "MMDiT": f"8 heads of 128, 4 blocks, {PICTURES} pictures of 16 x 16 tokens, {WORDS} text tokens",
    "end to end": f"small pipeline, {LAYERS} layers at {RESOLUTION}, {STEPS} steps with guidance",
}
SIDES = {"ours": ours, "reference": reference}
