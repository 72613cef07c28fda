"""Latents that `qil cache-latents` wrote give the batches that encoding while training gives.

What may differ, and why:
- Rounding: the cache keeps float16, half a unit in the last place of 11 bits off at most; see TOLERANCE.
- Text beyond the end of a prompt, and of places without a record: it belongs to no segment, so nothing reads it.
- Crops: a shuffled order crops online at random, while the cache holds the middle. Records whose shape is the bucket's
  have nothing to crop, and a sequential order crops by the middle.
- Numbers of records, where there are several buckets: the cache lays the records of one bucket together.
- Random single layers (the subject `layer`) and random flattening (the task `reconstruction`) are never cached.
"""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import World

from qil_jax.cli import cache_latents
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.loader.batch import NO_RECORD, Batch
from qil_jax.loader.latents import open_latents
from qil_jax.mesh import single_device_mesh
from qil_jax.programs import ended
from qil_jax.records.sources import open_source
from qil_jax.training import latent_cache
from qil_jax.training.batches import FlowBatch
from qil_jax.training.inputs import dropped_prompts
from qil_jax.training.setup import prepare
from qil_jax.training.stages.kinds import Stage

pytestmark = pytest.mark.full

FLOWS = (Stage.TEXT_TO_RGBA, Stage.TEXT_TO_LAYERS, Stage.IMAGE_TO_LAYERS)
SETTINGS = {"data.loader.max_layers": 3, "data.loader.rows": 4, "data.text_tokens": 48, "loss.caption_dropout": 0.3}
STEPS = 3
TOLERANCE = {"rtol": 2.0**-11, "atol": 5e-6}
"""Half a unit of float16's last place, relative to the value; and what sums in another order, over other numbers of
pictures at a time, cost networks in fp32 whose results are near 1."""


@pytest.fixture(scope="module")
def cached(world: World, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cached") / "latents"
    assert world.cache(folder, SETTINGS) == 0
    return folder


def batches(world: World, stage: Stage, changes: dict[str, object]) -> list[tuple[Batch, FlowBatch]]:
    """The first batches of a run, as they come from the loader and as the step reads them."""
    run = prepare(world.experiment(stage, SETTINGS | changes), single_device_mesh())
    with run.loader as loader:
        found = []
        for batch in itertools.islice(loader, STEPS):
            inputs = run.stage.inputs(batch)
            assert isinstance(inputs, FlowBatch)
            found.append((batch, inputs))
    return found


def assert_alike(now: list[tuple[Batch, FlowBatch]], before: list[tuple[Batch, FlowBatch]]) -> None:
    """All that is not encoded is identical, all that is encoded and read is equal up to rounding."""
    assert len(now) == len(before) == STEPS
    for (online, wanted), (kept, found) in zip(now, before, strict=True):
        for name in ("records", "tasks", "target_kinds", "layer_indices", "segments", "targets", "step"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(online, name), name)
        for name in ("weights", "kinds", "target_kinds", "rows", "picture_tokens"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)
        for field in dataclasses.fields(wanted.layout):
            name = field.name
            np.testing.assert_array_equal(getattr(found.layout, name), getattr(wanted.layout, name), name)
        pictures, text = (np.asarray(s) > 0 for s in (wanted.layout.image_segments, wanted.layout.text_segments))
        for encoded, encoding, read in ((found.clean, wanted.clean, pictures), (found.text, wanted.text, text)):
            assert encoded.shape == encoding.shape and np.std(np.asarray(encoding)[read]) > 0.1
            np.testing.assert_allclose(np.asarray(encoded)[read], np.asarray(encoding)[read], **TOLERANCE)


def lengths(batch: Batch, flow: FlowBatch) -> np.ndarray:
    """Text tokens of each record, in the rows' order."""
    segments = np.asarray(flow.layout.text_segments).reshape(*batch.records.shape, -1)
    return (segments > 0).sum(-1)[batch.records != NO_RECORD]


@pytest.mark.parametrize("stage", FLOWS)
def test_both_ways_give_the_same_batches(world: World, cached, stage):
    """Over shuffled steps with records of two and three layers, some merged from four, and prompts of all kinds."""
    now = batches(world, stage, {})
    assert_alike(now, batches(world, stage, {"data.inputs": "latents", "data.sources": f'["{cached}"]'}))
    layers = open_source(world.scenes).metadata().layers
    seen = np.concatenate([batch.records[batch.records != NO_RECORD] for batch, _ in now])
    assert {2, 3, 4} <= {*layers[seen].tolist()}
    dropped = [
        dropped_prompts(batch, 0, SETTINGS["loss.caption_dropout"], 0)[batch.records != NO_RECORD] for batch, _ in now
    ]
    counts = np.concatenate([lengths(*pair) for pair in now])
    without = np.concatenate(dropped)
    assert 0 < without.sum() < len(without)
    assert {*counts[without].tolist()} == {6}  # of the prompt that stands for none, with the template's end
    kept = counts[~without]
    assert kept.max() == 48 and 6 < kept.min() < 48


def test_prompts_may_be_cut_once_more(world: World, cached):
    """A run with fewer places of text than the cache keeps, which cuts most prompts."""
    fewer = {"data.text_tokens": 33}
    now = batches(world, Stage.TEXT_TO_LAYERS, fewer)
    latents = {"data.inputs": "latents", "data.sources": f'["{cached}"]'}
    assert_alike(now, batches(world, Stage.TEXT_TO_LAYERS, fewer | latents))
    assert max(lengths(*pair).max() for pair in now) == 33


def test_pictures_are_cropped_by_the_middle(world: World, tmp_path):
    """Wide and high records of two folders, in order: their crops are the middle both ways."""
    folders = tmp_path / "wide", tmp_path / "high"
    rng = np.random.default_rng(3)
    for folder, size in zip(folders, ((40, 75), (64, 32)), strict=True):
        for i in range(8):
            layers = rng.integers(0, 256, (1 + i % 4, *size, 4), np.uint8)
            names = ("",) * len(layers)
            LayeredImage(layers=layers, names=names, caption=f"noise {i}").save(folder / str(i))
    here = SETTINGS | {"data.loader.order": "sequential", "data.sources": json.dumps([*map(str, folders)])}
    config = world.config_file(tmp_path, Stage.IMAGE_TO_LAYERS, here)
    given = ["--checkpoint", str(world.base), "--config", str(config), "--splits", "train"]
    out = tmp_path / "latents"
    assert cache_latents.main([*map(str, folders), *given, "--out", str(out), "--rows", "5"]) == 0
    latents = here | {"data.inputs": "latents", "data.sources": f'["{out}"]'}
    now, before = (batches(world, Stage.IMAGE_TO_LAYERS, changes) for changes in (here, latents))
    assert {*range(16)} <= {*np.concatenate([batch.records.ravel() for batch, _ in now]).tolist()}
    assert_alike(now, before)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_cache_that_was_cut_off_is_continued(world: World, tmp_path, monkeypatch, capsys):
    """After an interruption between shards the same command ends with the same bytes, and keeps what was done."""
    monkeypatch.setattr(latent_cache, "SHARD", 16)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert world.cache(whole, SETTINGS) == 0
    encode, encoded = latent_cache.encode_records, []

    def until(limit, records, encoders):
        if len(encoded) == limit:
            raise KeyboardInterrupt
        encoded.append(len(records))
        return encode(records, encoders)

    monkeypatch.setattr(latent_cache, "encode_records", functools.partial(until, 2))
    assert world.cache(cut, SETTINGS) == 130
    assert {*files_of(cut)} == {"job.json", "train-00000.safetensors", "train-00001.safetensors"}
    with pytest.raises(ValueError, match=r"train.json: missing: run .*cache-latents to the end"):
        open_latents(cut, "train")
    encoded.clear()
    monkeypatch.setattr(latent_cache, "encode_records", functools.partial(until, None))
    assert world.cache(cut, SETTINGS) == 0
    assert encoded == [16, 10]
    assert files_of(cut) == files_of(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.loader.buckets.row_tokens": 24},
        {"data.loader.max_layers": 2},
        {"data.text_tokens": 47},
        {"loss.no_prompt": "nothing"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_cache_is_of_one_setting(world: World, cached, capsys, changes):
    before = files_of(cached)
    assert world.cache(cached, SETTINGS | changes) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {cached} holds latents made with other weights or settings (job.json)")
    assert "give another --out" in err and files_of(cached) == before


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_cache_is_of_one_checkpoint(world: World, cached, tmp_path, capsys, part):
    """One bit of one weight makes another checkpoint."""
    other = tmp_path / "other"
    shutil.copytree(world.base, other)
    (file,) = (other / part).glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    before = files_of(cached)
    assert world.cache(cached, SETTINGS, "--checkpoint", str(other)) == 2
    assert "holds latents made with other weights or settings" in capsys.readouterr().err
    assert files_of(cached) == before
    experiment = world.experiment(
        Stage.IMAGE_TO_LAYERS,
        SETTINGS | {"start.checkpoint": other, "data.inputs": "latents", "data.sources": f'["{cached}"]'},
    )
    name = {"vae": "VAE", "text_encoder": "text encoder"}[part]
    with pytest.raises(ValueError, match=f"was encoded by another {name}"):
        prepare(experiment, single_device_mesh())


def test_a_cache_is_of_one_dataset(world: World, cached, tmp_path, capsys):
    """Shards that are there are not taken for those of other records."""
    rng = np.random.default_rng(5)
    for i in range(58):
        layers = rng.integers(0, 256, (2, 32, 32, 4), np.uint8)
        LayeredImage(layers=layers, names=("", ""), caption="noise").save(tmp_path / "noise" / f"{i:02d}")
    config = world.config_file(tmp_path, Stage.IMAGE_TO_LAYERS, SETTINGS)
    given = ["--checkpoint", str(world.base), "--config", str(config), "--splits", "train", "--out", str(cached)]
    before = files_of(cached)
    assert ended(cache_latents.main, [str(tmp_path / "noise"), *given]) == 2
    assert "shard 0 of train is of other records: give another --out" in capsys.readouterr().err
    assert files_of(cached) == before


def test_a_cache_needs_the_rgba_vae(world: World, tmp_path, capsys):
    """The RGB VAE of Qwen-Image is refused before anything is written."""
    other = tmp_path / "rgb"
    shutil.copytree(world.base, other)
    file = other / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"input_channels": 3}))
    assert world.cache(tmp_path / "latents", SETTINGS, "--vae", str(other)) == 2
    assert "its VAE has 3 channels" in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()
