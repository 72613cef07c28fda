"""`qil plan` through its command line: what it refuses, within seconds, and one program that it compiles."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANGS

from qil_jax.cli import plan
from qil_jax.errors import QilError
from qil_jax.mesh import MeshShape
from qil_jax.planning.cache import RESULT, Results
from qil_jax.planning.compiling import Memory
from qil_jax.planning.devices import ENVIRONMENT
from qil_jax.planning.picture import draw
from qil_jax.planning.result import Result
from qil_jax.planning.sweep import meshes
from qil_jax.programs import ended

ROOT = Path(__file__).resolve().parents[2]
NARROW = {
    "num_layers": 2,
    "num_attention_heads": 8,
    "attention_head_dim": 128,
    "joint_attention_dim": 256,
    "use_additional_t_cond": True,
    "use_layer3d_rope": True,
}
"""A transformer of two blocks whose heads divide as those of the release do."""
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler for TPUs, is not installed"
)


def run_plan(*words: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which imports JAX for TPUs that are not there."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "qil_jax", "plan", *words]
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("infer", "--topology", "v5e:3x5", "--mesh", "tensor=8"), "topology 'v5e:3x5' is not known"),
        (("infer", "--topology", "v7:2x2", "--mesh", "tensor=4"), "v5e and v6e have"),
    ],
)
def test_what_is_refused_before_jax_is_imported(words, complaint):
    with pytest.raises(QilError) as error:
        plan.main(list(words))
    assert complaint in str(error.value)


@pytest.mark.parametrize("words", [("infer", "--topology", "v5e:2x4"), ("infer", "--mesh", "tensor=8"), ()])
def test_incomplete_command_lines(words, capsys):
    with pytest.raises(SystemExit) as stop:
        plan.main(list(words))
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


@needs_compiler
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--mesh", "tensor=4"), "makes 4 devices, but 8 are given"),
        (("--mesh", "tensors=8"), "'tensors' is no mesh axis"),
        (("--mesh", "cfg=2,context=4", "--spread", "none"), "spread is none"),
        (("--mesh", "fsdp=8", "--transformer", "absent.json"), "absent.json: cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_line(words, complaint, monkeypatch, capfd):
    for name in ENVIRONMENT:  # which the program sets in this process
        monkeypatch.setenv(name, os.environ.get(name, ""))
    assert ended(plan.main, ["infer", "--topology", "v5e:2x4", *words]) == 2
    printed = capfd.readouterr()
    assert complaint in printed.err
    assert printed.err.startswith("error: ") and not printed.out


def test_all_meshes_of_a_slice():
    found = list(meshes(8, guided=True))
    assert len(found) == len({*found}) == 20 + 10
    assert MeshShape(cfg=2, context=4) in found and all(mesh.devices == 8 for mesh in found)
    assert {mesh.cfg for mesh in meshes(8, guided=False)} == {1}
    assert [mesh.cfg for mesh in meshes(1, guided=True)] == [1]


@needs_compiler
@pytest.mark.full
def test_the_denoise_step_of_a_narrow_transformer(tmp_path):
    """Its collectives are those of the design, its products those of the mathematics; the second run is kept."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(NARROW))
    common = ("infer", "--topology", "v5e:2x4", "--transformer", str(config), "--layers", "2", "--resolution", "320")
    done = run_plan(*common, "--mesh", "cfg=2,context=2,tensor=2", "--json", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr
    assert "compiled, not run" in done.stdout and "fits: " in done.stdout and not done.stderr
    result = RESULT.validate_json((tmp_path / "r.json").read_bytes())
    assert result.fits and 1 <= result.repeated < 1.5 and result.roofline is not None
    assert not result.unknown_kernels and 0 < result.kernel_flops < result.device_flops
    kinds = {(traffic.kind, traffic.axes) for traffic in result.traffic}
    assert kinds <= DESIGN, "a collective that the design does not name"
    assert kinds >= REQUIRED, "a collective of the design is missing: the mesh does not split what it shall split"
    for traffic in result.traffic:
        if traffic.kind == "all-reduce":
            assert traffic.bytes <= traffic.count * TOKENS * 4, "more than segment ids is summed on every device"


DESIGN = {
    ("all-gather", ("context",)),  # kernels that are in parts
    ("all-reduce", ("context",)),  # segment ids, which XLA gathers as a sum
    ("all-to-all", ("context",)),  # Ulysses
    ("all-gather", ("tensor",)),  # tokens before a product with parameters
    ("reduce-scatter", ("tensor",)),  # sums after it
    ("all-gather", ("context", "tensor")),
    ("collective-permute", ("cfg",)),  # both passes' velocities
    ("all-gather", ("cfg",)),
    ("all-gather", ("cfg", "tensor")),
    ("all-gather", ("cfg", "context", "tensor")),
}
"""Kinds of collectives and the axes of the mesh along which they run in a denoise step."""
REQUIRED = {("all-to-all", ("context",)), ("all-gather", ("tensor",)), ("reduce-scatter", ("tensor",))}
TOKENS = 512 + 4 * 20**2
"""Text and image tokens of the narrow step."""


def test_results_are_kept_by_program(tmp_path):
    file = tmp_path / "kept.json"
    kept = Results(file)
    result = Result(
        topology="v5e:2x4",
        mesh={"tensor": 8},
        memory=Memory(fits=True, peak=5),
        available=10,
        beside={},
        minimum_flops=1.0,
    )
    kept.put("a", "first", result)
    kept.put("b", "second", result)
    again = Results(file)
    assert again.get("a", "first") == result and again.get("a") == result
    assert again.get("a", "changed") is None and again.get("c") is None
    again.keep(["b"])
    assert Results(file).get("a") is None and Results(file).get("b") == result
    file.write_text('{"a": 1}')
    with pytest.raises(QilError, match="does not hold results of plans"):
        Results(file)
    with pytest.raises(QilError, match="no plan fits"):
        draw({"a": result}, tmp_path / "p.png")
