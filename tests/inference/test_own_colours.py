"""Pictures with their own colours through `qil decompose`: their layers show what they show, in files of every kind."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import ADOBE, LIKE_SRGB, P3, cmyk_profile, convert, profile_of
from PIL import Image, ImageOps
from psd_tools import PSDImage
from psd_tools.constants import Resource
from test_finish import blend_of

from qil_jax.cli import edit, export
from qil_jax.cli.decompose import main
from qil_jax.export import formats
from qil_jax.layers.pictures import DEEP
from qil_jax.layers.profiles import SRGB
from qil_jax.viewer.stored import stored_entry

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WIDE = {"adobe": profile_of(ADOBE, name="Adobe RGB (1998)"), "p3": profile_of(P3, name="Display P3", curve=LIKE_SRGB)}
GREY, INKS = profile_of({}, "GRAY", "dark grey"), cmyk_profile()
SIZE = (96, 80)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """An RGB PNG, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    pieces = {b"IHDR": head, b"IDAT": zlib.compress(rows), b"IEND": b""}
    body = (struct.pack(">I", len(x)) + k + x + struct.pack(">I", zlib.crc32(k + x)) for k, x in pieces.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """One picture of each kind, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    photo = Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize(SIZE)
    drawn = Image.open(EXAMPLES / "unseen.png").convert("RGB").resize(SIZE)
    for name, profile in WIDE.items():
        convert(photo, profile, back=True).convert("RGB").save(folder / f"{name}.png", icc_profile=profile)
    photo.convert("L").save(folder / "grey.png", icc_profile=GREY)
    photo.convert("CMYK").save(folder / "cmyk.tif", icc_profile=INKS)
    deep = np.asarray(photo, np.uint16) * 257
    deep[1::2] -= (deep[1::2] > 0) * np.uint16(99)
    (folder / "deep.png").write_bytes(png_of_16_bits(deep))
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / "phone.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))], quality=95)
    sideways = drawn.transpose(Image.Transpose.ROTATE_90)
    sideways.save(folder / "turned.jpg", exif=turned, quality=95, icc_profile=WIDE["p3"])
    palette = drawn.quantize(32)
    palette.save(folder / "palette.png", transparency=palette.getpixel((0, 0)), icc_profile=WIDE["adobe"])
    return {path.stem: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def results(pictures, tmp_path_factory) -> Path:
    """A folder of results at the pictures' own size."""
    out = tmp_path_factory.mktemp("results")
    words = ["--steps", "1", "--layers", "3", "--output-size", "input", "--exact", "--export", "psd,zip,ora,pptx"]
    assert main([*map(str, pictures.values()), "--out", str(out), "--batch", "8", *words]) == 0
    return out


def upright(path: Path) -> Image.Image:
    """A picture as Pillow reads and turns it."""
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
        return turned if turned.mode in ("L", "CMYK") else turned.convert("RGBA")


def shown(path: Path) -> np.ndarray:
    """A picture in sRGB as littlecms converts it."""
    return np.asarray(convert(upright(path), carried(path)), int)


def carried(path: Path) -> bytes | None:
    """The profile that a picture file carries."""
    with Image.open(path) as image:
        return image.info.get("icc_profile")


def apart(ours: np.ndarray, theirs: np.ndarray) -> int:
    """The largest difference that is seen."""
    assert np.abs(ours[..., 3].astype(int) - theirs[..., 3]).max() <= 1
    return int((np.abs(ours.astype(int) - theirs) * (theirs[..., 3:] > 0)).max())


NAMES = ["adobe", "cmyk", "deep", "grey", "p3", "palette", "phone", "turned"]


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_the_layers_show_what_the_picture_shows(pictures, results, name):
    assert sorted(pictures) == NAMES
    folder, record = results / name, json.loads((results / name / "result.json").read_text())
    own = None if name in ("grey", "cmyk") else carried(pictures[name])
    assert {carried(folder / layer["file"]) for layer in record["layers"]} == {own} and record["size"] == list(SIZE)
    blend = blend_of(folder)
    straight = np.concatenate([blend[..., :3] / np.maximum(blend[..., 3:], 1e-9), blend[..., 3:]], axis=-1)
    blended = Image.fromarray(np.rint(255 * straight.clip(0, 1)).astype(np.uint8), "RGBA")
    expected = shown(pictures[name])
    assert apart(np.asarray(convert(blended, own)), expected) <= 2
    document = PSDImage.open(folder / "layers.psd")
    assert document.image_resources.get_data(Resource.ICC_PROFILE) == own
    drawn = document.composite(force=True, apply_icc=False).convert("RGBA")
    assert (
        apart(np.asarray(drawn), np.asarray(upright(pictures[name])) if own else expected) <= 2
    )  # psd-tools rounds on its way
    names = {"adobe": "Adobe RGB (1998)", "p3": "Display P3", "turned": "Display P3", "palette": "Adobe RGB (1998)"}
    assert record["profile"] == names.get(name, "sRGB")
    notes = {"deep": DEEP, "grey": "GRAY profile 'dark grey'", "cmyk": "CMYK profile 'inks'"}
    said = record["decisions"]
    assert len(said) == (name in notes) and all(notes[name] in line for line in said)


@pytest.mark.full
@pytest.mark.parametrize("name", ["adobe", "turned"])
def test_other_programs_of_ours_keep_the_profile_or_convert(results, tmp_path, name):
    """Every byte of PNG and ZIP, what is visible of PSD; all others have sRGB."""
    stored = formats.read(results / name).layered
    assert stored.profile == WIDE["adobe" if name == "adobe" else "p3"]
    for source, to in [(results / name, "zip"), (tmp_path / "a.zip", "psd"), (tmp_path / "a.psd", "png")]:
        suffix = "" if to == "png" else f".{to}"
        assert export.main([str(source), "--to", to, "--out", str(tmp_path / f"a{suffix}")]) == 0
        again = formats.read(tmp_path / f"a{suffix}").layered
        assert again.profile == stored.profile and again.decisions == ()
        np.testing.assert_array_equal(visible(again.layers), visible(stored.layers))
        assert to != "zip" or (again.layers == stored.layers).all()
    said = json.loads((tmp_path / "a" / "manifest.json").read_text())["profile"]
    assert said == ("Adobe RGB (1998)" if name == "adobe" else "Display P3")
    converted = stored.with_profile(SRGB)
    expected = [convert(Image.fromarray(layer, "RGBA"), stored.profile) for layer in stored.layers]
    np.testing.assert_array_equal(converted.layers, np.stack(expected))
    for suffix in ("ora", "pptx"):
        file = formats.read(results / name / f"layers.{suffix}").layered
        assert file.profile == SRGB
        np.testing.assert_array_equal(visible(file.layers), visible(converted.layers))
    entry = stored_entry(results / name)
    np.testing.assert_array_equal(entry.tree.layered.layers, converted.layers)


def visible(layers: np.ndarray) -> np.ndarray:
    return np.where(layers[..., 3:] > 0, layers, 0)


@pytest.mark.full
def test_editing_and_painted_layers_are_in_srgb(results, tmp_path):
    script = tmp_path / "ops.json"
    script.write_text('[{"op": "move", "layer": 2, "dx": 3}]')
    assert edit.main([str(results / "adobe"), "--script", str(script), "--out", str(tmp_path / "edited")]) == 0
    stored = formats.read(results / "adobe").layered
    edited = formats.read(tmp_path / "edited").layered
    assert edited.profile == SRGB
    np.testing.assert_array_equal(edited.layers[0], stored.with_profile(SRGB).layers[0])
    shutil.copytree(results / "adobe", tmp_path / "painted")
    layer = next((tmp_path / "painted").glob("02_*.png"))
    with Image.open(layer) as image:
        Image.new("RGBA", image.size, (10, 200, 30, 255)).save(layer)
    painted = formats.read(tmp_path / "painted").layered
    assert painted.profile == SRGB and (painted.layers[1] == (10, 200, 30, 255)).all()
    np.testing.assert_array_equal(painted.layers[0], edited.layers[0])


@pytest.mark.full
def test_colours_that_srgb_lacks_are_kept_in_parts_of_layers_too(pictures, tmp_path):
    picture = upright(pictures["adobe"]).convert("RGB")
    picture.paste((0, 255, 0), (10, 20, 50, 60))
    picture.paste((255, 0, 90), (40, 40, 80, 70))
    picture.save(tmp_path / "wide.png", icc_profile=WIDE["adobe"])
    words = ["--steps", "1", "--layers", "2", "--output-size", "input", "--exact", "--depth", "2"]
    assert main([str(tmp_path / "wide.png"), "--out", str(tmp_path), *words]) == 0
    tree = formats.read(tmp_path / "wide")
    assert {group.tree.layered.profile for group in tree.groups.values()} == {WIDE["adobe"]}
    assert apart(tree.leaves().composite_8bit(), np.asarray(picture.convert("RGBA"))) <= 1
    assert formats.read(tmp_path / "wide" / "layers.psd").layered.profile == WIDE["adobe"]


@pytest.mark.full
def test_at_the_models_size_all_is_in_srgb_and_notes_are_told(pictures, tmp_path, capsys):
    words = [str(pictures["adobe"]), str(pictures["deep"]), "--steps", "1", "--layers", "3", "--batch", "8"]
    assert main([*words, "--output-size", "model", "--out", str(tmp_path)]) == 0
    assert f"deep.png: {DEEP}\n" in capsys.readouterr().out
    assert formats.read(tmp_path / "adobe").layered.profile == SRGB
