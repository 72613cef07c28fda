"""Ours against diffusers and transformers on this machine: the same random weights, inputs and precision (fp32).

python tools/bench.py [--case NAME]... [--repeats N] [--write docs/benchmarks.md]
python tools/bench.py data [...]                    # the loader: tools/bench_data.py
python tools/bench.py train [...]                   # a training step: tools/bench_train.py

Both sides run in one process and alternate; the table gives medians. Peak memory is that of a process of its own which
loads the weights and runs the case once.
"""

import argparse
import contextlib
import functools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from marked import write_between
from rich.console import Console
from rich.table import Table

from qil_jax.command_line import Parser
from qil_jax.programs import run_main

ROOT = Path(__file__).resolve().parents[1]
WRITE = "replace the table between the marks of this file"
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
"""What differs from the released configs."""
GRID, PICTURES, WORDS = (16, 16), 6, 64
LAYERS, STEPS, RESOLUTION = 4, 10, 256


@functools.cache
def mmdit_config() -> dict[str, Any]:
    """Of the case MMDiT."""
    from qil_jax.weights.released import CONFIGS
    from qil_jax.weights.tables.entries import Component

    return {**CONFIGS[Component.TRANSFORMER], **MMDIT}


def write_weights(folder: Path) -> None:
    """Random checkpoints for all cases, written without torch."""
    import make_demo_checkpoint as demo

    from qil_jax.weights.released import CONFIGS
    from qil_jax.weights.tables.entries import Component

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
    """One RGBA picture, channels last, in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 4)).astype(np.float32)


def latents() -> np.ndarray:
    """The latents of one such picture."""
    return np.random.default_rng(1).standard_normal((1, 32, 32, 16)).astype(np.float32)


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Image and text tokens."""
    random = np.random.default_rng(2)
    count = PICTURES * GRID[0] * GRID[1]
    shapes = (1, count, mmdit_config()["in_channels"]), (1, WORDS, MMDIT["joint_attention_dim"])
    return tuple(random.standard_normal(shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


def ours(name: str, folder: Path) -> Case:
    """Our side of a case, ready to run."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from qil_jax.inference.pipeline import Pipeline
    from qil_jax.inference.request import Request, Settings
    from qil_jax.mesh import INFERENCE_RULES, single_device_mesh
    from qil_jax.models.attention import AttentionKind
    from qil_jax.models.rope import LayerIndex, image_positions, text_offset, text_positions
    from qil_jax.models.vld_mmdit import TokenLayout
    from qil_jax.weights import Component, load_component

    place = {"mesh": single_device_mesh(), "rules": INFERENCE_RULES}

    def compiled(model: Any, call: Callable[..., Any]) -> Callable[..., np.ndarray]:
        graph, state = nnx.split(model)
        run = jax.jit(lambda state, *a: call(nnx.merge(graph, state), *a))
        return lambda *a: np.asarray(run(state, *a))

    if name == "end to end":
        pipeline = Pipeline.load(folder / "pipeline")
        request = Request(image=photograph(), layers=LAYERS, prompt="a cat", resolution=RESOLUTION)
        return lambda: pipeline.decompose([request], Settings(steps=STEPS))[0].layered.layers
    if name == "MMDiT":
        model = load_component(folder / "mmdit", Component.TRANSFORMER, **place)
        targets = PICTURES - 1
        layers = (LayerIndex.COMPOSITE, *range(1, targets), LayerIndex.CONDITION)
        positions = image_positions(GRID, layers)
        layout = TokenLayout(
            image_positions=jnp.asarray(positions)[None],
            text_positions=jnp.asarray(text_positions(WORDS, offset=text_offset(GRID, targets=targets)))[None],
            image_segments=jnp.ones((1, len(positions)), jnp.int32),
            text_segments=jnp.ones((1, WORDS), jnp.int32),
        )
        arguments = {"sigma": jnp.full(1, 0.6), "target_kind": jnp.zeros(1, jnp.int32)}
        kind = AttentionKind.XLA_BY_HEAD
        run = compiled(model, lambda m, *a: m(*a, layout, kind=kind, **arguments))
        return lambda: run(*tokens())
    vae = load_component(folder / "vae", Component.VAE, **place)
    if name == "VAE encode":
        run = compiled(vae, lambda vae, x: vae.encode(x).mean)
        return lambda: run(pixels())
    run = compiled(vae, lambda vae, z: vae.decode(z))
    return lambda: run(latents())


def reference(name: str, folder: Path) -> Case:
    """The other side: diffusers and transformers on torch, with their own loaders."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    torch.set_grad_enabled(False)
    first = lambda x: torch.from_numpy(x.transpose(0, 3, 1, 2)[:, :, None].copy())  # noqa: E731
    last = lambda x: x[:, :, 0].permute(0, 2, 3, 1).numpy()  # noqa: E731
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


def measure(name: str, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of both sides, alternating, after one run of each that does not count."""
    runs = {side: build(name, folder) for side, build in SIDES.items()}
    results = {side: run() for side, run in runs.items()}
    if name != "end to end":  # there each side draws its own noise; tests compare them with the same
        error = np.abs(results["ours"] - results["reference"]).max() / np.abs(results["reference"]).max()
        if not error <= 1e-4:
            raise SystemExit(f"{name}: the sides differ by {error:.1e} and do not do the same work")
    assert results["ours"].shape == results["reference"].shape
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    for _ in range(repeats):
        for side, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - began)
    return seconds


def peak_memory(name: str, side: str, folder: Path) -> float:
    """GB of resident memory at most, of a process that loads one side and runs the case once."""
    command = [sys.executable, __file__, "--only", side, "--case", name, "--folder", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def parser() -> Parser:
    """Of what is measured where nothing else is named."""
    parse = Parser(description=__doc__)
    add = parse.add_argument
    add("--case", action="append", choices=CASES, help="all of them otherwise")
    add("--repeats", type=int, default=7, help="of each side (default %(default)s)")
    add("--write", type=Path, help=WRITE)
    add("--only", choices=SIDES, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parse


def data_parser() -> Parser:
    """Of `bench.py data`."""
    parse = Parser(prog="bench.py data", description="How fast records become batches: tools/bench_data.py.")
    parse.add_argument("--samples", type=int, default=48, help="scenes to load (default %(default)s)")
    parse.add_argument("--write", type=Path, help=WRITE)
    return parse


def train_parser() -> Parser:
    """Of `bench.py train`."""
    parse = Parser(prog="bench.py train", description="A training step against torch's: tools/bench_train.py.")
    parse.add_argument("--rows", type=int, default=32, help="samples of a batch (default %(default)s)")
    parse.add_argument("--repeats", type=int, default=12, help="steps of each side (default %(default)s)")
    parse.add_argument("--write", type=Path, help=WRITE)
    return parse


def main(argv: list[str]) -> int:
    """Print the table, and write it where told to."""
    if argv[:1] == ["data"]:
        arguments = data_parser().parse_args(argv[1:])
        from bench_data import measure as measure_data

        measure_data(arguments)
        return 0
    if argv[:1] == ["train"]:
        arguments = train_parser().parse_args(argv[1:])
        from bench_train import measure as measure_training

        measure_training(arguments)
        return 0
    arguments = parser().parse_args(argv)
    if arguments.only:
        SIDES[arguments.only](arguments.case[0], arguments.folder)()
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder)
        for case in arguments.case or CASES:
            memory = {side: peak_memory(case, side, folder) for side in SIDES}
            with contextlib.redirect_stdout(sys.stderr):
                seconds = measure(case, folder, arguments.repeats)
            medians = {side: float(np.median(values)) for side, values in seconds.items()}
            ratios = np.array(seconds["reference"]) / np.array(seconds["ours"])
            rows.append(
                (
                    case,
                    f"{medians['ours']:.3f} s",
                    f"{medians['reference']:.3f} s",
                    f"{medians['reference'] / medians['ours']:.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
                    f"{memory['ours']:.2f} GB",
                    f"{memory['reference']:.2f} GB",
                )
            )
            print(*rows[-1], sep="   ", flush=True)
    table = Table("case", "ours", "reference", "times faster", "memory, ours", "memory, reference")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if arguments.write:
        write_table(arguments.write, rows)
    return 0


def write_table(file: Path, rows: list[tuple[str, ...]]) -> None:
    """Put the rows between the marks of a Markdown file."""
    import diffusers
    import jax
    import torch

    head = ("case", "what", "ours", "reference", "times faster (lowest to highest)", "peak memory, ours", "reference")
    versions = f"jax {jax.__version__}, torch {torch.__version__.split('+')[0]}, diffusers {diffusers.__version__}"
    machine = f"{os.cpu_count()} {platform.machine()} cores, {versions}, fp32."
    write_between(file, "bench", [head, *((row[0], CASES[row[0]], *row[1:]) for row in rows)], machine)


if __name__ == "__main__":
    run_main(main)
