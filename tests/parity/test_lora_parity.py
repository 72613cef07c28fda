"""LoRAs in all layouts against diffusers and peft: files of others in both, our files in theirs."""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import TRANSFORMER, build_tiny_checkpoint, tiny_transformer
from flax import nnx
from loras import SPELLINGS, TIMESTEP, TOP, block_modules, random_lora, write_layout
from parity_inputs import layered, layout
from peft import LoraConfig
from reference import error

from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.weights import Checkpoint, Component, read_lora, write_lora

torch.set_grad_enabled(False)
GRID, LAYERS, WORDS = (3, 4), layered(2), 5
MODULES = [*block_modules(0), *block_modules(2), *TOP, *TIMESTEP]
CHANGES = 0.02
"""A change of the output, relative to it, that no rounding makes."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "checkpoint"
    tiny_transformer().save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def table(checkpoint):
    return Checkpoint(checkpoint)[Component.TRANSFORMER].table


def theirs(transformer) -> np.ndarray:
    random = torch.Generator().manual_seed(5)
    tokens = len(LAYERS) * GRID[0] * GRID[1]
    return transformer(
        hidden_states=torch.randn(1, tokens, TRANSFORMER["in_channels"], generator=random),
        encoder_hidden_states=torch.randn(1, WORDS, TRANSFORMER["joint_attention_dim"], generator=random),
        encoder_hidden_states_mask=torch.ones(1, WORDS, dtype=torch.bool),
        timestep=torch.tensor([0.6]),
        img_shapes=[[(1, *GRID)] * len(LAYERS)],
        additional_t_cond=torch.tensor([0]),
        return_dict=False,
    )[0].numpy()


def ours(checkpoint: Path, loras=()) -> np.ndarray:
    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    graph, state = nnx.split(Checkpoint(checkpoint).load(Component.TRANSFORMER, sharding, loras=loras))
    random = torch.Generator().manual_seed(5)
    tokens = len(LAYERS) * GRID[0] * GRID[1]
    x = jnp.asarray(torch.randn(1, tokens, TRANSFORMER["in_channels"], generator=random).numpy())
    text = jnp.asarray(torch.randn(1, WORDS, TRANSFORMER["joint_attention_dim"], generator=random).numpy())
    where = layout(GRID, LAYERS, torch.ones(1, WORDS, dtype=torch.bool))
    run = jax.jit(
        lambda state, x, text: nnx.merge(graph, state)(
            x, text, where, sigma=jnp.array([0.6]), target_kind=jnp.array([0])
        )
    )
    return np.asarray(run(state, x, text))


def pipeline_with(transformer):
    """The pipeline of diffusers around a transformer, without the other components."""
    from diffusers import QwenImageLayeredPipeline

    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "processor"))
    return QwenImageLayeredPipeline(transformer=transformer, **parts)


def agree(checkpoint, table, files: dict[Path, float], *, tolerance: float = 2e-5) -> None:
    """The pipeline of diffusers with the files as adapters, and our transformer with them merged, make the same."""
    transformer = tiny_transformer()
    before = theirs(transformer)
    pipeline = pipeline_with(transformer)
    names = [f"lora_{i}" for i in range(len(files))]
    for name, file in zip(names, files, strict=True):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, adapter_weights=list(files.values()))
    expected = theirs(transformer)
    assert error(before, torch.from_numpy(expected)) > CHANGES
    loras = [(read_lora(file, table), scale) for file, scale in files.items()]
    assert error(ours(checkpoint, loras), torch.from_numpy(expected)) <= tolerance


BOTH = [(name, alphas) for name in SPELLINGS for alphas in (True, False)]
UNREAD = [("lightning", False), ("bare", False), ("diffusers", True)]
"""What diffusers itself loads nothing of, or fails on."""


@pytest.mark.parametrize(("name", "alphas"), [case for case in BOTH if case not in UNREAD])
@pytest.mark.full
def test_every_layout(checkpoint, table, tmp_path, name, alphas):
    scale = 0.5 if alphas else 1.0
    lora = random_lora(table, MODULES, ranks=(4, 6), scale=scale)
    file = write_layout(tmp_path / "lora.safetensors", lora, name, alphas=alphas)
    assert {change.scale for change in read_lora(file, table).changes.values()} == {scale}
    agree(checkpoint, table, {file: 1.0})


@pytest.mark.parametrize(
    ("ranks", "scale"), [((4,), 1.0), ((4,), 0.25), ((3, 3, 5, 8), 0.3), ((7,), 1 / 7), ((2, 6), 2.0)]
)
@pytest.mark.full
def test_our_file_in_their_pipeline(checkpoint, table, tmp_path, ranks, scale):
    lora = random_lora(table, MODULES, ranks=ranks, scale=scale)
    file = tmp_path / "ours.safetensors"
    write_lora(file, lora)
    agree(checkpoint, table, {file: 1.0})
    assert error(ours(checkpoint, [(lora, 1.0)]), ours(checkpoint, [(read_lora(file, table), 1.0)])) == 0


def test_our_file_in_their_whole_pipeline(table, tmp_path):
    """A pipeline that diffusers loaded with all its components."""
    pipeline = build_tiny_checkpoint(tmp_path / "checkpoint")
    lora = random_lora(table, MODULES, ranks=(4, 8), scale=0.5)
    write_lora(tmp_path / "pytorch_lora_weights.safetensors", lora)
    pipeline.load_lora_weights(str(tmp_path))
    assert error(ours(tmp_path / "checkpoint", [(lora, 1.0)]), torch.from_numpy(theirs(pipeline.transformer))) <= 2e-5


@pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute")
@pytest.mark.full
def test_two_adapters_add_up(checkpoint, table, tmp_path):
    first = random_lora(table, MODULES, ranks=(4,), scale=0.5, seed=1)
    second = random_lora(table, [*block_modules(1), *block_modules(2), "img_in"], ranks=(2, 5), scale=2.0, seed=2)
    files = {write_layout(tmp_path / "first.safetensors", first, "kohya"): 0.7}
    write_lora(tmp_path / "second.safetensors", second)
    files[tmp_path / "second.safetensors"] = -1.3
    agree(checkpoint, table, files)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.full
def test_what_diffusers_saves(checkpoint, table, tmp_path, rslora):
    """An adapter of several ranks and alphas, which peft made and a pipeline of diffusers saved."""
    transformer = tiny_transformer()
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_out.0", "img_mod.1", "proj_out", "net.2"],
        rank_pattern={} if rslora else {"to_q": 3, "transformer_blocks.1.img_mod.1": 5},
        alpha_pattern={} if rslora else {"to_q": 1.5},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    transformer.add_adapter(config)
    expected = torch.from_numpy(theirs(transformer))
    from peft.utils import get_peft_model_state_dict

    pipeline_with(transformer).save_lora_weights(
        str(tmp_path / "pipeline"),
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    transformer.save_lora_adapter(str(tmp_path / "model"))
    for folder in ("pipeline", "model"):
        lora = read_lora(tmp_path / folder / "pytorch_lora_weights.safetensors", table)
        assert len(lora.changes) == 3 * 5 + 1
        scales = {round(change.scale, 6) for change in lora.changes.values()}
        assert scales == ({3.0} if rslora else {0.5, 1.5, 1.2})
        assert error(ours(checkpoint, [(lora, 1.0)]), expected) <= 2e-5


def test_their_reading_of_our_header(table, tmp_path, caplog):
    """In the header peft finds what it finds in the tensors, so it has nothing to warn of."""
    lora = random_lora(table, MODULES, ranks=(4, 4, 6), scale=0.5)
    write_lora(tmp_path / "lora.safetensors", lora)
    transformer = tiny_transformer()
    with caplog.at_level(logging.WARNING):
        pipeline_with(transformer).load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    assert not caplog.records
    config = transformer.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (4, 2) and set(config.rank_pattern.values()) == {6}
    assert json.loads(json.dumps(config.alpha_pattern)) == dict.fromkeys(config.rank_pattern, 3)
