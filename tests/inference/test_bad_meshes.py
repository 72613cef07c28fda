"""Meshes that do not fit, through the command line: one error, before any tensor is read or program compiled."""

from pathlib import Path

import pytest
from PIL import Image
from waiting import free_port

from qil_jax.cli import decompose_arguments
from qil_jax.cli.decompose import main
from qil_jax.kernels import Spread
from qil_jax.mesh import Weights
from qil_jax.models.attention import AttentionKind
from qil_jax.weights import assemble
from tools.make_demo_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("meshes")
    write_checkpoint(folder / "checkpoint")
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    return [str(folder / "a.png"), "--checkpoint", str(folder / "checkpoint"), "--out", str(folder / "out")]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=3", "cfg=1 x data=3 x fsdp=1 x context=1 x tensor=1 makes 3 devices, but 8 are given"),
        ("data=4,tensor=4", "makes 16 devices, but 8 are given"),
        ("cfg=4,data=2", "cfg=4: guidance has two passes, so cfg must be 1 or 2"),
        ("model=8", "'model' is no mesh axis: use cfg, data, fsdp, context, tensor"),
        ("data=2,data=4", "'data' is given twice"),
        ("data=0", "the size must be a positive integer"),
        ("data", "the size must be a positive integer"),
        ("tensor=8", "transformer: 2 attention heads do not divide into 8 parts"),
        ("data=2,tensor=4", "transformer: 2 attention heads do not divide into 4 parts"),
    ],
)
@pytest.mark.full
def test_meshes_are_refused(words, mesh, message, capsys, monkeypatch, compiled):
    def read(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(assemble, "assemble", read)
    assert main([*words, "--mesh", mesh]) == 2
    assert compiled == []
    err = capsys.readouterr().err
    assert message in err and err.count("error:") == 1
    assert not Path(words[-1]).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh", "data=8", "--attention", "cudnn"], "cudnn attention runs on NVIDIA GPUs, and the devices are cpu"),
        (["--mesh", "context=8", "--spread", "ulysses"], "ulysses needs tensor x context = 1 x 8 to divide 2 heads"),
        (["--mesh", "context=8", "--spread", "none"], "use gather, ulysses or ring"),
    ],
)
@pytest.mark.full
def test_attention_that_does_not_fit_the_mesh_is_refused(words, options, message, capsys):
    assert main([*words, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("error:") == 1


def test_the_command_line_names_what_the_mesh_and_the_kernels_know():
    parser = decompose_arguments._parser()
    for name, kind in {"attention": AttentionKind, "spread": Spread, "weights": Weights}.items():
        for member in kind:
            assert getattr(parser.parse_args(["a.png", f"--{name}", str(member)]), name) is member
        assert f"--{name} {{{','.join(kind)}}}" in parser.format_help()


def test_processes_without_a_coordinator_are_refused(words, capsys):
    where = f"127.0.0.1:{free_port()}"
    assert main([*words, "--mesh", "data=8", "--distributed", f"{where},2,1", "--wait", "0.2"]) == 2
    assert f"no process 0 answers at {where} within 0.2 s" in capsys.readouterr().err
    assert main([*words, "--distributed", "here"]) == 2
    assert "give auto, or HOST:PORT,COUNT,INDEX" in capsys.readouterr().err
