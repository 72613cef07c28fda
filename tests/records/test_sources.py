"""Datasets, plain folders and LayerD's Crello folders give the same records, and metadata without decoding."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qil_jax.cli import make_scenes
from qil_jax.layers.compositing import composite_8bit
from qil_jax.records.sources import UnionSource, open_source
from qil_jax.scenes.scene import SceneConfig, make_scene

COUNT, SIDE = 40, 48


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Scenes as a dataset, and its training split as folders and in LayerD's layout."""
    out = tmp_path_factory.mktemp("scenes")
    for form in ("records", "folders"):
        command = ["--count", str(COUNT), "--side", str(SIDE), "--format", form, "--out", str(out / form)]
        assert make_scenes.main(command) == 0
    for sample in sorted((out / "folders").iterdir()):
        name = f"train_{int(sample.name[-8:]):06d}_5f3a_1"
        folder = out / "crello" / "train" / "layers" / name
        folder.mkdir(parents=True)
        for file in sample.glob("*.png"):
            Image.open(file).save(folder / f"{name}_{int(file.stem):02d}.png")
        (out / "crello" / "train" / "composite").mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(out / "crello" / "train" / "composite" / f"{name}.png")
    return out


def all_of(source):
    return [source[i] for i in range(len(source))]


def row_of(record):
    return [*record.size, len(record.layers), len(record.caption)]


@pytest.mark.parametrize("inner", ["", "layered_dataset/1.0.0"])
@pytest.mark.full
def test_datasets(scenes, inner):
    source = open_source(scenes / "records" / inner)
    made = {make_scene(seed, SceneConfig(side=SIDE)).caption: seed for seed in range(COUNT)}
    records = all_of(source)
    assert len(source) == 36 and len({record.source for record in records}) == 36
    for record in records:
        expected = make_scene(made[record.caption], SceneConfig(side=SIDE))
        np.testing.assert_array_equal(
            composite_8bit(record.layers, record.size), composite_8bit(expected.layers, expected.size)
        )
    for _ in range(2):  # read from the records, then from the file that this left
        np.testing.assert_array_equal(source.metadata().rows, [row_of(record) for record in records])
    assert (scenes / "records/layered_dataset/1.0.0/metadata-train.npy").exists()
    assert len(open_source(scenes / "records", "validation")) == 2


@pytest.mark.full
def test_folders_and_crello(scenes):
    plain, crello = open_source(scenes / "folders"), open_source(scenes / "crello")
    assert len(plain) == len(crello) == COUNT
    for i, record in enumerate(all_of(plain)):
        expected = make_scene(i, SceneConfig(side=SIDE))
        assert (record.caption, record.licence) == (expected.caption, "CC0-1.0")
        for other in (expected, crello[i]):
            for a, b in zip(record.layers, other.layers, strict=True):
                assert a.window == b.window
                np.testing.assert_array_equal(a.pixels, b.pixels)
        assert crello[i].caption == ""
    np.testing.assert_array_equal(plain.metadata().rows, [row_of(record) for record in all_of(plain)])
    assert "train_000007_5f3a_1" in crello.name(7)


def test_more_than_a_hundred_layers_keep_their_order(tmp_path):
    folder = tmp_path / "train" / "layers" / "train_000001_a"
    folder.mkdir(parents=True)
    for i in range(105):
        Image.new("RGBA", (4, 4), (i, 0, 0, 255)).save(folder / f"train_000001_a_{i:02d}.png")
    record = open_source(tmp_path)[0]
    assert [int(layer.pixels[0, 0, 0]) for layer in record.layers] == list(range(105))


@pytest.mark.full
def test_unions(scenes):
    opened = [open_source(scenes / "records", split) for split in ("validation", "train", "test")]
    union = UnionSource(opened)
    assert len(union) == COUNT
    sources = [record.source for record in all_of(union)]
    assert sources == [record.source for part in opened for record in all_of(part)] and len({*sources}) == COUNT
    np.testing.assert_array_equal(union.metadata().rows, [row_of(record) for record in all_of(union)])
    assert union.name(2) == opened[1].name(0) and union.name(39) == opened[2].name(1)


def test_datasets_need_no_tensorflow(scenes):
    code = (
        "import sys; from qil_jax.records.sources import open_source;"
        f"s = open_source({str(scenes / 'records')!r}); s[0]; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_source_is_said(scenes, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"no records: expected dataset_info\.json"):
            open_source(folder)
    with pytest.raises(ValueError, match="no split 'night': it has"):
        open_source(scenes / "records", "night")


def test_metadata_of_another_dataset_are_refused(scenes):
    source = open_source(scenes / "records", "test")
    file = scenes / "records/layered_dataset/1.0.0/metadata-test.npy"
    np.save(file, np.zeros((3, 4), np.int64))
    with pytest.raises(ValueError, match="lists 3 records, but there are 2: remove that file"):
        source.metadata()
    file.unlink()


def test_a_broken_folder_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGBA", (4, 4)).save(tmp_path / "a" / "000.png")
    Image.new("RGBA", (5, 4)).save(tmp_path / "a" / "001.png")
    with pytest.raises(ValueError, match="different sizes"):
        open_source(tmp_path)[0]
