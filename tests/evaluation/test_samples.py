"""Records brought to a size, what is scored of them, and folders of evaluations that are claimed."""

import json

import numpy as np
import pytest

from qil_jax.evaluation.job import claim
from qil_jax.evaluation.samples import flattened, sample_rows, scored, true_sample
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.loader.samples import resized_record
from qil_jax.records.record import from_layered_image
from qil_jax.scenes.scene import SIMPLE, make_scene


def test_at_its_own_size_a_record_is_unchanged():
    record = make_scene(3, SIMPLE, None)
    true, image = true_sample(record, record.size), record.to_layered_image()
    assert np.array_equal(np.stack(true.layers), image.layers)
    assert np.abs(true.picture.astype(int) - image.composite_8bit()).max() <= 1  # single and double precision
    result = scored("it", true, true.layers)
    assert (result.layers, result.scores[0].l1, result.scores[0].iou) == (len(true.layers), 0, 1)
    assert result.recomposition > 45 and result.health == result.true_health


@pytest.mark.parametrize("side", [32, 96])
def test_where_nothing_need_be_cropped_layers_are_those_of_training(side):
    record = make_scene(5, SIMPLE, None)
    trained = resized_record(record, (side, side), 20).to_layered_image()
    layers = np.stack(true_sample(record, (side, side)).layers)
    assert layers.shape == trained.layers.shape
    # Boxes are resized from patches: their corners are rounded elsewhere.
    seen = lambda x: x[..., :3] / 255.0 * (x[..., 3:] / 255.0)
    assert np.abs(seen(layers) - seen(trained.layers)).max() < 3 / 255
    assert np.abs(layers[..., 3].astype(int) - trained.layers[..., 3]).max() <= 2


def test_other_aspects_are_stretched_and_what_vanishes_is_dropped():
    layers = np.zeros((3, 64, 90, 4), np.uint8)
    layers[0] = (0, 0, 255, 255)
    layers[1, 16:48, 45:] = (255, 0, 0, 255)
    layers[2, 5, 5] = (255, 255, 0, 3)  # an alpha of 3 over a pixel: nothing at half the size
    record = from_layered_image(LayeredImage(layers=layers, names=("a", "b", "c")))
    true = true_sample(record, (32, 32))
    assert len(true.layers) == 2
    expected = np.zeros((32, 32), bool)
    expected[8:24, 16:] = True
    assert np.array_equal(true.layers[1][..., 3] > 127, expected)
    rows = sample_rows(true, true.layers)
    assert [len(row) for row in rows] == [3, 3] and rows[1][0].shape == (32, 32, 4)
    assert np.abs(flattened(true.layers).astype(int) - true.picture)[:, 20:].max() < 40  # LANCZOS rings


def test_a_folder_is_gone_on_with_by_the_same_alone(tmp_path):
    out = tmp_path / "out"
    claim(out, {"steps": 2, "seed": 1})
    claim(out, {"steps": 2, "seed": 1})
    with pytest.raises(
        ValueError, match=r"another evaluation.*\n  steps: 2 there, 3 here\n  seed: 1 there, None here$"
    ):
        claim(out, {"steps": 3})
    assert json.loads((out / "job.json").read_text()) == {"steps": 2, "seed": 1}
    (out / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json: is not JSON as it should be"):
        claim(out, {"steps": 2})
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").touch()
    with pytest.raises(ValueError, match="is not empty: give another --out"):
        claim(tmp_path / "photographs", {})
    with pytest.raises(ValueError, match="is a file"):
        claim(tmp_path / "photographs" / "a.png", {})
