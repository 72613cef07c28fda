"""`qil export`: results and files in, other files out, and every mistake named before anything is written."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from qil_jax import host_memory
from qil_jax.choices import Edges
from qil_jax.cli.export import main
from qil_jax.errors import QilError
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.result import write_result
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.refinement import at_size
from qil_jax.scenes.scene import SceneConfig, make_scene


@pytest.fixture
def results(tmp_path):
    """A folder of two results."""
    rng = np.random.default_rng(1)
    for name in ("fox", "owl.v2"):
        layers = rng.integers(1, 256, (3, 10, 12, 4), np.uint8)
        image = LayeredImage(layers=layers, names=("sky", "tree", name))
        write_result(tmp_path / "results" / name, image, image.composite_8bit(), {"settings": {"prompt": "a caption"}})
    return tmp_path / "results"


def test_results_go_to_every_format_and_back(results, capsys):
    out = results.parent / "out"
    out.mkdir()
    given = formats.read(results / "fox").layered
    assert given.caption == "a caption"
    for format in Format:
        assert main([str(results / "fox"), str(results / "owl.v2"), "--to", format, "--out", str(out)]) == 0
        assert "fox" in capsys.readouterr().out
        end = "-png" if format is Format.PNG else f".{format}"
        assert (out / f"owl.v2{end}").exists()
        back = out / f"back-{format}"
        assert main([str(out / f"fox{end}"), "--to", "png", "--out", str(back)]) == 0
        np.testing.assert_array_equal(formats.read(back).layered.layers, given.layers)
        assert formats.read(back).layered.names == given.names
    assert main([str(results / "fox"), "--to", "ora"]) == 0
    assert (results / "fox.ora").is_file(), "beside the result, which stays as it is"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fox", "nothing", "--to", "ora"], "nothing: no such file or folder"),
        (["fox", "--to", "ora", "--out", "out/fox.psd"], "its name must end with .ora"),
        (["fox", "--to", "ora", "--native-text"], "--native-text goes with --to pptx"),
        (["fox", "--to", "zip", "--out", "taken.zip"], "taken.zip exists"),
        (["fox", "fox/../fox", "--to", "zip"], "would be written twice"),
        (["fox/sheet.png", "--to", "zip"], "layers are read from folders"),
    ],
)
def test_mistakes_are_named(results, monkeypatch, arguments, message):
    monkeypatch.chdir(results)
    (results / "taken.zip").write_bytes(b"x")
    before = sorted(results.rglob("*"))
    with pytest.raises(QilError, match=message):
        main(arguments)
    assert sorted(results.rglob("*")) == before and (results / "taken.zip").read_bytes() == b"x"


@pytest.fixture
def scene(tmp_path):
    """A drawn scene of 96 x 96 pixels: its picture, and a folder of its layers at 32 x 32."""
    layers = make_scene(3, SceneConfig(side=96)).to_layered_image().layers
    names = tuple(map(str, range(len(layers))))
    Image.fromarray(LayeredImage(layers=layers, names=names).composite_8bit(), "RGBA").save(tmp_path / "photo.png")
    low = [np.asarray(Image.fromarray(x, "RGBA").resize((32, 32), Image.Resampling.BOX)) for x in layers]
    LayeredImage(layers=np.stack(low), names=names).save(tmp_path / "low")
    return tmp_path


def test_layers_get_the_size_and_the_edges_of_the_picture(scene, capsys):
    low, picture = LayeredImage.load(scene / "low"), np.asarray(Image.open(scene / "photo.png"))
    for format in (Format.PNG, Format.PSD):
        for edges in Edges:
            out = scene / f"{edges}.{format}"
            words = ["--to", format, "--out", str(out), "--picture", str(scene / "photo.png")]
            words += [] if edges is Edges.REFINED else ["--edges", edges]
            assert main([str(scene / "low"), *words]) == 0
            found, (wanted, _) = formats.read(out).layered, at_size(low, picture, edges)
            shows = wanted.layers[..., 3:] > 0
            np.testing.assert_array_equal(found.layers * shows, wanted.layers * shows)
            how = "refined" if edges is Edges.REFINED else "interpolated"
            said = f"{how} from 32x32 to the 96x96 pixels of photo.png"
            assert said in capsys.readouterr().out
            assert format is Format.PSD or found.decisions == (said,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["low", "--to", "psd", "--picture", "nowhere.png"], "nowhere.png: no such file"),
        (["low", "--to", "psd", "--picture", "low/layered.json"], "cannot be read as a picture"),
        (["low", "--to", "psd", "--picture", "low/000.png"], "low/000.png: 32x32 pixels, and the layers have 32x32"),
        (["low", "--to", "psd", "--picture", "wide.png"], "wide.png: 200x60 pixels, .* of another shape"),
        (["low", "--to", "psd", "--edges", "plain"], "--edges goes with --picture"),
        (["low", "low/..", "--to", "psd", "--picture", "photo.png"], "is the picture of one result"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(scene, monkeypatch, arguments, message):
    monkeypatch.chdir(scene)
    Image.new("RGB", (200, 60)).save("wide.png")
    before = sorted(scene.rglob("*"))
    with pytest.raises(QilError, match=message):
        main(arguments)
    assert sorted(scene.rglob("*")) == before


def test_layers_beyond_memory_are_refused(scene, monkeypatch):
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 96 * 96 * 8)
    with pytest.raises(QilError, match=r"layers of the 96x96 pixels of .*photo\.png needs at least .* smaller picture"):
        main([str(scene / "low"), "--to", "zip", "--picture", str(scene / "photo.png")])
    assert not (scene / "low.zip").exists()


def test_names_that_are_no_text_leave_files_that_can_be_read(scene, tmp_path):
    picture = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    shutil.copyfile(scene / "photo.png", picture)
    assert main([str(scene / "low"), "--to", "zip", "--picture", picture, "--out", str(tmp_path / "a.zip")]) == 0
    assert "caf" in formats.read(tmp_path / "a.zip").layered.decisions[-1]


def test_masks_of_groups_are_refused_by_the_name_of_their_file(tmp_path):
    stack = LayeredImage(layers=np.full((2, 8, 8, 4), 255, np.uint8), names=("a", "b"))
    tree = LayerTree(layered=stack, groups={0: Group(tree=LayerTree.of(stack), left=0, top=0)})
    formats.write(tree, tmp_path / "grouped.zip", Format.ZIP)
    with pytest.raises(QilError, match=r"grouped\.zip: has groups, and --hidden-masks is for plain stacks"):
        main([str(tmp_path / "grouped.zip"), "--to", "png", "--hidden-masks", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
