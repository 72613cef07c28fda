"""Loading onto a mesh: in pieces, each byte once per process, in bounded memory, and nothing that is not whole."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from waiting import HANGS, free_port, simulated

from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.paths import slashed
from qil_jax.weights import Checkpoint, TextEncoderPart, WeightsError, assemble
from qil_jax.weights.convert import to_orbax
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan, TensorReader, stored_tensors
from qil_jax.weights.tables.entries import Component, targets
from tools.bench.convert import shallow, write_component_noise
from tools.make_demo_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
MESHES = ["fsdp=2,tensor=2,data=2", "context=2,fsdp=4"]
EACH = [Component.TRANSFORMER, TextEncoderPart.VISION_LANGUAGE, Component.VAE]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "released"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def orbax(released) -> Path:
    folder = released.with_name("orbax")
    to_orbax(released, folder)
    return folder


def parameters(model: nnx.Module) -> dict[str, jax.Array]:
    return {slashed(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def loaded(folder: Path, component: Component | TextEncoderPart, mesh: str) -> dict[str, jax.Array]:
    grid = make_mesh(MeshShape.parse(mesh)) if mesh else single_device_mesh()
    return parameters(Checkpoint(folder).load(component, Sharding(grid, INFERENCE_RULES)))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("component", EACH)
@pytest.mark.full
def test_pieces_make_up_the_parameters(released, orbax, mesh, component, monkeypatch):
    wanted = loaded(released, component, "")
    monkeypatch.setattr(assemble, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(assemble, "AHEAD_BYTES", 1 << 13)
    for folder in (released, orbax):
        found = loaded(folder, component, mesh)
        assert found.keys() == wanted.keys()
        for path, value in wanted.items():
            assert found[path].dtype == value.dtype
            np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(value), err_msg=path)
        split = [path for path, value in found.items() if not value.sharding.is_fully_replicated]
        assert bool(split) is (component is not Component.VAE)


@pytest.mark.parametrize("pieces", [1 << 12, 1 << 26])
@pytest.mark.full
def test_bytes_are_counted_and_read_once(released, pieces, monkeypatch):
    """What eight devices hold eight times is read once."""
    monkeypatch.setattr(assemble, "PIECE_BYTES", pieces)
    counts: list[tuple[int, int]] = []
    with assemble.reporting(lambda *count: counts.append(count)):
        found = loaded(released, Component.TRANSFORMER, "data=8")
    total = sum(value.nbytes for value in found.values())
    assert {whole for _, whole in counts} == {total} and counts[-1] == (total, total)
    done = [count for count, _ in counts]
    assert done == sorted(set(done)) and len(done) >= len(found)


READING = """
import json, sys
import jax
from pathlib import Path
from qil_jax.launch import connected

def main(folder, mesh, where, wait):
    with connected(where, wait=float(wait)):
        import numpy as np
        from flax import nnx
        from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh
        from qil_jax.models.paths import slashed
        from qil_jax.weights import Checkpoint, Component
        from qil_jax.weights.assemble import reporting
        counts = []
        sharding = Sharding(make_mesh(MeshShape.parse(mesh)), INFERENCE_RULES)
        folder, part = Path(folder), Component.TRANSFORMER
        with reporting(lambda *count: counts.append(count)):
            model = Checkpoint(folder).load(part, sharding)
        stored = Checkpoint(folder)[part]
        source, wanted = stored.source(), stored.targets
        whole = 0
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            if leaf[...].sharding.is_fully_replicated:
                whole += leaf[...].nbytes
            for shard in leaf[...].addressable_shards:
                index = tuple(slice(*s.indices(n)[:2]) for s, n in zip(shard.index, leaf[...].shape))
                np.testing.assert_array_equal(np.asarray(shard.data), source.read(wanted[slashed(path)], index))
        print(json.dumps({"read": counts[-1][0], "replicated": whole}), flush=True)

main(*sys.argv[1:])
"""


@pytest.mark.parametrize("mesh", ["fsdp=2", "tensor=2"])
@pytest.mark.full
def test_each_of_two_processes_reads_half(released, mesh):
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", READING, str(released), mesh, f"{address},2,{index}", str(HANGS)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    table = Checkpoint(released)[Component.TRANSFORMER].table
    reader = TensorReader(stored_tensors(released / Component.TRANSFORMER))
    size = (
        sum(math.prod(target.shape) for target in targets(table).values())
        * next(iter(reader.tensors.values())).dtype.itemsize
    )
    for process in both:
        out, err = process.communicate(timeout=HANGS)
        assert process.returncode == 0, err
        said = json.loads(out.splitlines()[-1])
        assert said["read"] == (size + said["replicated"]) // 2
        assert said["read"] < 0.6 * size


@pytest.mark.full
def test_memory_stays_near_one_block(tmp_path):
    """Two blocks of the released width on eight devices, beside which the file's 1.4 GB are not held."""
    write_component_noise(tmp_path, Component.TRANSFORMER, shallow(2)[Component.TRANSFORMER], mask=0xBFFF)
    words = ["load", "--only", "ours", "--folder", str(tmp_path), "--mesh", "fsdp=8"]
    flags = {"XLA_FLAGS": simulated(8), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "bench"), *words],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["parameters"] > 1.4
    assert said["peak"] - said["parameters"] < 0.6


@pytest.fixture
def shards(released, tmp_path) -> list[Path]:
    """The transformer's files in a copy of the checkpoint, where they are several."""
    folder = tmp_path / "copy"
    shutil.copytree(released, folder)
    part = folder / Component.TRANSFORMER
    single = next(part.glob("*.safetensors"))
    reader = TensorReader(stored_tensors(part))
    tensors = {name: reader[name].copy() for name in reader.tensors}
    single.unlink()
    plans = [TensorPlan(name=name, dtype=x.dtype, shape=x.shape) for name, x in tensors.items()]
    writer = ShardedWriter(part, single.stem, plans, shard_bytes=sum(plan.bytes for plan in plans) // 3)
    for name, x in tensors.items():
        writer.write(name, x)
    writer.close()
    files = sorted(part.glob("*.safetensors"))
    assert len(files) >= 3
    return files


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("cut", [1, 1000, None])
@pytest.mark.full
def test_a_truncated_shard_is_refused(shards, number, cut):
    file = shards[number]
    size = file.stat().st_size
    os.truncate(file, 0 if cut is None else size - cut)
    with pytest.raises(WeightsError, match=file.name):
        loaded(file.parent.parent, Component.TRANSFORMER, "data=8")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_renamed_shard_is_refused(shards, number):
    file = shards[number]
    file.rename(file.with_name("model-00009-of-00009.safetensors"))
    with pytest.raises(WeightsError, match=f"{file.name}.*missing"):
        loaded(file.parent.parent, Component.TRANSFORMER, "data=8")


def test_exchanged_shards_are_refused(shards):
    first, second = shards[:2]
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    with pytest.raises(WeightsError, match="is not in"):
        loaded(first.parent.parent, Component.TRANSFORMER, "data=8")
