"""A trained component as a checkpoint folder: sound, whole, and written by one process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from qil_jax.cli import validate
from qil_jax.weights import Checkpoint, export
from qil_jax.weights.tables.entries import Component
from tools.make_demo_checkpoint import write_checkpoint

FILES = {Component.TRANSFORMER: "diffusion_pytorch_model", Component.VAE: "diffusion_pytorch_model"}
FILES |= {Component.TEXT_ENCODER: "model"}


class Trained:
    """A checkpoint, and the arguments that export one component of it with every value doubled."""

    def __init__(self, folder, component: Component):
        self.base, self.component = folder / "base", component
        write_checkpoint(self.base)
        checkpoint = Checkpoint(self.base)
        source, wanted = checkpoint[component].source(), checkpoint[component].targets
        self.arguments = {
            "component": component,
            "params": {p: jnp.asarray(2 * source.read(t, tuple(map(slice, t.shape)))) for p, t in wanted.items()},
            "config": checkpoint[component].json,
            "others": dict.fromkeys(Component, checkpoint),
            "origin": {"stage": "test", "step": 1},
        }

    def stored(self, folder) -> dict[str, np.ndarray]:
        return load_file(folder / self.component / f"{FILES[self.component]}.safetensors")


@pytest.fixture
def transformer(tmp_path) -> Trained:
    return Trained(tmp_path, Component.TRANSFORMER)


@pytest.mark.parametrize("component", list(Component))
@pytest.mark.full
def test_what_is_exported_is_sound(tmp_path, component):
    trained = Trained(tmp_path, component)
    export.export_checkpoint(tmp_path / "out", **trained.arguments)
    assert validate.main([str(tmp_path / "out"), "--values"]) == 0
    before, after = trained.stored(trained.base), trained.stored(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, x in after.items():
        if "time_conv" in name:  # not held by the parameters
            np.testing.assert_array_equal(x, before[name])
        elif x.ndim == 5 and x.shape[-1] == 3:
            np.testing.assert_array_equal(x[:, :, :2], before[name][:, :, :2])
            np.testing.assert_array_equal(x[:, :, 2], 2 * before[name][:, :, 2])
        else:
            np.testing.assert_array_equal(x, 2 * before[name])


def test_what_the_parameters_do_not_hold_is_kept(tmp_path):
    """The text encoder may be trained without its vision tower."""
    trained = Trained(tmp_path, Component.TEXT_ENCODER)
    language = {path: x for path, x in trained.arguments["params"].items() if path.startswith("language/")}
    export.export_checkpoint(tmp_path / "out", **{**trained.arguments, "params": language})
    before, after = trained.stored(trained.base), trained.stored(tmp_path / "out")
    for name, x in after.items():
        np.testing.assert_array_equal(x, before[name] * (2 if name.startswith("model.") else 1))


def test_links_that_lead_back_are_not_followed_round_in_circles(transformer, tmp_path):
    more = transformer.base / "more"
    (more / "deep").mkdir(parents=True)
    (more / "deep" / "notes.txt").write_text("kept")
    (more / "file").symlink_to("deep/notes.txt")
    for name, target in {"base": "..", "here": ".", "deep/up": ".."}.items():
        (more / name).symlink_to(target)
    export.export_checkpoint(tmp_path / "out", **transformer.arguments)
    copied = tmp_path / "out" / "more"
    assert sorted(str(path.relative_to(copied)) for path in copied.rglob("*")) == ["deep", "deep/notes.txt", "file"]


def test_a_failed_export_leaves_nothing_and_no_others_folder_is_touched(transformer, tmp_path, monkeypatch):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "precious").write_text("kept")

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("qil_jax.weights.safetensors_io.ShardedWriter.write", full)
        export.export_checkpoint(tmp_path / "out", **transformer.arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out.unfinished"]
    export.export_checkpoint(tmp_path / "out", **transformer.arguments)
    assert (tmp_path / "out.unfinished" / "precious").read_text() == "kept"
    with pytest.raises(export.ExportError, match="exists: give another folder"):
        export.export_checkpoint(tmp_path / "out", **transformer.arguments)


def test_other_processes_take_part_and_write_nothing(transformer, tmp_path, monkeypatch):
    gathered: list[int] = []
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(export, "gathered", lambda x: gathered.append(x.size) or np.asarray(x))
    export.export_checkpoint(tmp_path / "not" / "here" / "out", **transformer.arguments)
    assert gathered == [x.size for x in transformer.arguments["params"].values()]
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
