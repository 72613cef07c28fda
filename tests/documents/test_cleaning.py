"""Each rule of cleaning by itself, and that all together leave the composite unchanged."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_stacks import SIZE, box, stacks
from PIL import Image, ImageFilter

from qil_jax.documents.anomalies import Anomaly, PatchDetector
from qil_jax.documents.cleaning import clean
from qil_jax.documents.duplicates import near_duplicates, perceptual_hash
from qil_jax.documents.limits import CleaningConfig, Merging
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite
from qil_jax.layers.visibility import contributing, visible_pixels

SMALL = CleaningConfig(min_layer_pixels=1, min_side=1, min_layers=1, min_deviation=0.0)
CHELSEA = Path(__file__).parents[2] / "examples" / "chelsea.png"


def photograph() -> np.ndarray:
    return np.asarray(Image.open(CHELSEA).convert("RGBA"))


@given(stacks())
@pytest.mark.full
def test_what_is_dropped_does_not_change_the_composite(layers):
    kept, gone = contributing(layers, SIZE, SMALL.contribution)
    assert len(kept) + len(gone) == len(layers)
    assert np.abs(composite(kept, SIZE) - composite(layers, SIZE)).max() < 0.5 / 255
    for i in range(len(kept)):
        without = kept[:i] + kept[i + 1 :]
        assert np.abs(composite(without, SIZE) - composite(kept, SIZE)).max() > 0


@given(stacks(most=40), st.integers(1, 20))
@pytest.mark.full
def test_clean_keeps_the_composite(layers, most):
    config = dataclasses.replace(SMALL, min_layers=0, max_layers=most)
    cleaned = clean(layers, SIZE, config)
    assert len(cleaned.layers) <= most
    assert np.abs(composite(cleaned.layers, SIZE) - composite(layers, SIZE)).max() <= 1 / 255


def test_why_layers_go():
    ground, hidden, cover = box(0, 0, *SIZE, value=1), box(1, 1, 3, 3, value=50), box(0, 0, 4, 4, value=7)
    twin, clear, faint = box(0, 0, 2, 2, value=7), box(0, 0, 2, 2, alpha=0), box(5, 5, 6, 6, alpha=1, value=255)
    kept, gone = contributing([ground, hidden, cover, twin, clear, faint], SIZE, SMALL.contribution)
    assert kept[0].pixels is not None and [layer.name for layer in kept] == [ground.name, cover.name, faint.name]
    assert [why for _, why in gone] == ["hidden", "same as below it", "empty"]


def test_kept_layers_are_cut_to_what_they_show():
    layer = box(0, 0, 5, 5)
    layer.pixels[:2, :, 3] = 0
    kept, _ = contributing([layer], SIZE, SMALL.contribution)
    assert (kept[0].top, kept[0].left, kept[0].pixels.shape) == (2, 0, (3, 5, 4))


def test_visible_pixels():
    stack = [box(0, 0, *SIZE), box(0, 0, 2, 2, alpha=51), box(0, 0, 2, 2)]
    np.testing.assert_allclose(visible_pixels(stack, SIZE), [38, 0, 4], atol=1e-3)


def test_decisions_are_told_and_counted():
    dots = [box(i, j, i + 1, j + 1, value=10 * i + j) for i in range(7) for j in range(6)]
    columns = [box(i, 0, i + 2, 6, alpha=200, value=30 * i) for i in range(6)]
    cleaned = clean([*dots, *columns], SIZE, dataclasses.replace(SMALL, max_layers=3))
    assert len(cleaned.layers) == 3
    assert cleaned.counts == {"merged by depth": 41, "merged to the limit": 4}
    assert cleaned.decisions[0] == "merged 48 layers into 7 by depth: those of one depth never overlap"
    assert all("neighbours into" in decision and "3 at most" in decision for decision in cleaned.decisions[1:])


def test_layers_that_are_too_small_to_teach_join_their_neighbours():
    dots = [box(x, 0, x + 1, 1, value=40 * x) for x in range(5)]
    stack = [box(0, 0, *SIZE, value=1), *dots, box(0, 2, 3, 5, value=9), box(0, 2, 3, 3, value=99)]
    config = dataclasses.replace(SMALL, min_layer_pixels=4)
    merged = clean(stack, SIZE, config)
    assert [layer.pixels[..., 3].any(0).sum() for layer in merged.layers] == [SIZE[0], 3, 5], "the dots became one"
    apart = clean(stack, SIZE, dataclasses.replace(config, merging=Merging.NONE))
    assert len(apart.layers) == 2 and apart.counts == {"merged as too small": 6}
    assert apart.decisions[0] == f"merged '{dots[0].name}' into its neighbour: shows 1 pixel, 4 needed"
    np.testing.assert_array_equal(composite(apart.layers, SIZE), composite(stack, SIZE))
    assert len(clean(dots, SIZE, dataclasses.replace(config, merging=Merging.NONE)).layers) == 1
    below = clean([*dots, box(0, 0, *SIZE, alpha=99)], SIZE, dataclasses.replace(config, merging=Merging.NONE))
    assert len(below.layers) == 1
    every = clean(stack, SIZE, dataclasses.replace(SMALL, merging=Merging.NONE))
    assert [layer.name for layer in every.layers] == [layer.name for layer in stack] and not every.decisions


@pytest.mark.parametrize(
    ("layers", "config", "reason"),
    [
        ([box(0, 0, *SIZE)], CleaningConfig(), Reason.TOO_SMALL),
        ([box(0, 0, *SIZE)], CleaningConfig(min_side=1), Reason.TOO_FLAT),
        ([box(0, 0, *SIZE, value=0), box(0, 0, 4, 4, value=255, alpha=0)], SMALL, None),
        (
            [box(0, 0, *SIZE, value=0), box(0, 0, 4, 4, value=255)],
            dataclasses.replace(SMALL, min_layers=3),
            Reason.TOO_FEW_LAYERS,
        ),
    ],
)
def test_documents_that_are_refused(layers, config, reason):
    if reason is None:
        assert len(clean(layers, SIZE, config).layers) == 1
        return
    with pytest.raises(Dropped) as refused:
        clean(layers, SIZE, config)
    assert refused.value.reason is reason and refused.value.detail


def test_a_users_detector_has_its_say():
    with pytest.raises(Dropped, match=r"watermark at \(1, 2, 3, 4\)"):
        clean([box(0, 0, *SIZE)], SIZE, SMALL, [lambda layers, size: [Anomaly(kind="watermark", box=(1, 2, 3, 4))]])


def over_box(change, where: tuple[int, int, int, int]) -> np.ndarray:
    picture = Image.fromarray(photograph())
    picture.paste(change(picture.crop(where)), where)
    return np.asarray(picture)


def mosaic(block: int):
    def change(part: Image.Image) -> Image.Image:
        size = part.width // block, part.height // block
        return part.resize(size, Image.Resampling.BOX).resize(part.size, Image.Resampling.NEAREST)

    return change


def meets(found: list[Anomaly], where: tuple[int, int, int, int]) -> bool:
    return any(
        a.box[0] < where[2] and where[0] < a.box[2] and a.box[1] < where[3] and where[1] < a.box[3] for a in found
    )


@pytest.mark.parametrize("block", [8, 12, 16])
@pytest.mark.parametrize("corner", [(150, 60), (201, 103)])
def test_a_mosaic_is_found(block, corner):
    where = (*corner, corner[0] + 9 * block, corner[1] + 9 * block)
    found = PatchDetector().patches(over_box(mosaic(block), where))
    assert found and {a.kind for a in found} == {"mosaic"} and meets(found, where)


@pytest.mark.parametrize("where", [(120, 60, 240, 180), (180, 90, 260, 150), (60, 100, 180, 220)])
def test_a_blur_is_found(where):
    found = PatchDetector().patches(over_box(lambda part: part.filter(ImageFilter.GaussianBlur(7)), where))
    assert found and {a.kind for a in found} == {"blur"} and meets(found, where)


def test_patches_are_looked_for_in_each_layer_and_named_on_the_canvas():
    spoiled = over_box(lambda part: part.filter(ImageFilter.GaussianBlur(7)), (120, 60, 240, 180))
    size = spoiled.shape[1] + 30, spoiled.shape[0] + 20
    layers = [
        BoxedLayer(pixels=np.full((size[1], size[0], 4), 255, np.uint8), left=0, top=0, name="ground"),
        BoxedLayer(pixels=spoiled, left=30, top=20, name="photograph"),
    ]
    found = PatchDetector()(layers, size)
    assert found and meets(found, (150, 80, 270, 200)) and found[0].box[0] >= 150 - 33
    honest = [dataclasses.replace(layers[1], pixels=photograph())]
    y, x = np.mgrid[-1:1:120j, -1:1:120j]
    ball = np.stack([200 - 50 * x, 150 - 50 * y, 90 + 20 * x * y, 255 * (np.hypot(x, y) < 1)], -1).astype(np.uint8)
    smooth_thing = BoxedLayer(pixels=ball, left=90, top=70, name="ball")
    assert PatchDetector()([*honest, smooth_thing], size) == []


def test_honest_pictures_are_clean():
    y, x = np.mgrid[:256, :256]
    ramp = np.stack([x, y, 255 - x, np.full_like(x, 255)], -1).astype(np.uint8)
    flat = np.full((256, 256, 4), 255, np.uint8)
    flat[64:128, 32:200, :3] = 40
    checks = np.repeat(np.where((x // 8 + y // 8) % 2, 255, 0)[..., None], 4, -1).astype(np.uint8)
    soft = np.asarray(Image.fromarray(photograph()).filter(ImageFilter.GaussianBlur(6)))
    for picture in (photograph(), photograph()[::-1], ramp, flat, soft):
        assert PatchDetector().patches(np.ascontiguousarray(picture)) == []
    assert PatchDetector().patches(checks[:32, :32]) == []


def test_near_duplicates():
    original = Image.fromarray(photograph())
    smaller = original.resize((211, 141), Image.Resampling.LANCZOS)
    mirrored = original.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    hashes = {k: perceptual_hash(np.asarray(v)) for k, v in {"b": original, "a": smaller, "c": mirrored}.items()}
    assert near_duplicates(hashes, 4) == {"b": "a"}


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 15), st.randoms())
def test_bands_find_all_that_are_near(values, bits, random):
    near = [value ^ sum(1 << i for i in random.sample(range(64), random.randint(0, bits))) for value in values]
    hashes = {f"{i:02d}": value for i, value in enumerate(values + near)}
    dropped = near_duplicates(hashes, bits)
    stay = []
    for name in sorted(hashes):
        close = [other for other in stay if (hashes[other] ^ hashes[name]).bit_count() <= bits]
        assert dropped.get(name) == min(close, default=None)
        if not close:
            stay.append(name)


def test_max_bits_is_checked():
    with pytest.raises(ValueError, match="take 0"):
        near_duplicates({}, 16)


def test_boxes_lie_on_the_canvas():
    assert BoxedLayer(pixels=np.zeros((2, 3, 4), np.uint8), left=1, top=2, name="x").window == np.s_[2:4, 1:4]
