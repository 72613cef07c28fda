"""Damaged headers, indexes, configs and tokenizers: accepted and then really loaded, or refused in one report."""

import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qil_jax.cli import validate
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.models.config import ConfigError
from qil_jax.weights import Checkpoint
from qil_jax.weights.convert import to_orbax
from qil_jax.weights.safetensors_io import TensorReader, read_headers, stored_tensors
from qil_jax.weights.stored import read_config
from qil_jax.weights.strict import WeightsError
from qil_jax.weights.structure import component_problems
from qil_jax.weights.tables.entries import Component
from qil_jax.weights.tokenizer import tokenizer_problems
from tools.fuzz.cases import mutate
from tools.fuzz.damage import damaged_json
from tools.make_demo_checkpoint import write_checkpoint

HEADERS, INDEXES, CONFIGS, TOKENIZERS, ARRAYS, PROGRAMS = 4000, 3000, 3000, 150, 20, 30
TENSORS = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    "d": {"dtype": "F16", "shape": [0, 5], "data_offsets": [40, 40]},
}
HEADER = {"__metadata__": {"format": "pt"}, **TENSORS}
BYTES = bytes(range(40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutations") / "checkpoint"
    write_checkpoint(folder)
    return folder


def write_tensors(file: Path, header: bytes, data: bytes = BYTES) -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def loads(file: Path) -> bool:
    """Whether a file of tensors is accepted; then everybody reads the same from it."""
    try:
        reader = TensorReader(read_headers([file]))
    except WeightsError as error:
        assert error.problems and all(str(file) in problem for problem in error.problems)
        return False
    others = dict(safetensors.deserialize(file.read_bytes()))
    assert others.keys() == reader.tensors.keys()
    for name, other in others.items():
        assert list(reader[name].shape) == other["shape"]
        assert reader[name].tobytes() == bytes(other["data"])
    return True


@pytest.mark.full
def test_headers(tmp_path):
    rng, file, accepted = random.Random(0), tmp_path / "a.safetensors", 0
    whole = json.dumps(HEADER).encode()
    for i in range(HEADERS):
        if i % 2:
            write_tensors(file, damaged_json(HEADER, rng))
        elif i % 4:
            write_tensors(file, mutate(whole, rng))
        else:
            file.write_bytes(mutate(struct.pack("<Q", len(whole)) + whole + BYTES, rng))
        accepted += loads(file)
    assert HEADERS // 50 < accepted < HEADERS // 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
COUNTS = st.lists(st.integers(-1, 9) | st.sampled_from([2**32, 2**63]), max_size=4)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8"]) | JSON,
        "shape": COUNTS | JSON,
        "data_offsets": st.sampled_from([[0, 0], [0, 4], [0, 8], [4, 8], [8, 12]]) | COUNTS | JSON,
    }
)
ANYWHERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANYWHERE
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=5), ENTRY | JSON, max_size=3),
    size=st.integers(0, 16),
)
@pytest.mark.full
def test_any_header(tmp_path, header, size):
    file = tmp_path / "a.safetensors"
    write_tensors(file, json.dumps(header).encode(), bytes(size))
    loads(file)


def write_shards(folder: Path) -> dict:
    """Two shards and what their index says."""
    for shard, names in (("one", ["a", "b.weight"]), ("two", ["c", "d"])):
        first = TENSORS[names[0]]["data_offsets"][0]
        entries = {n: {**TENSORS[n], "data_offsets": [o - first for o in TENSORS[n]["data_offsets"]]} for n in names}
        size = entries[names[-1]]["data_offsets"][1]
        write_tensors(folder / f"{shard}.safetensors", json.dumps(entries).encode(), BYTES[first : first + size])
    shards = {"a": "one", "b.weight": "one", "c": "two", "d": "two"}
    return {"metadata": {"total_size": 40}, "weight_map": {n: f"{s}.safetensors" for n, s in shards.items()}}


def indexed(folder: Path, text: bytes) -> bool:
    """Whether an index of the two shards is accepted; then all tensors load."""
    (folder / "a.safetensors.index.json").write_bytes(text)
    try:
        reader = TensorReader(stored_tensors(folder))
    except WeightsError as error:
        assert error.problems and all(str(folder) in problem for problem in error.problems)
        return False
    assert b"".join(reader[name].tobytes() for name in TENSORS) == BYTES
    return True


@pytest.mark.full
def test_indexes(tmp_path):
    rng, index = random.Random(1), write_shards(tmp_path)
    assert indexed(tmp_path, json.dumps(index).encode())
    accepted = sum(indexed(tmp_path, damaged_json(index, rng)) for _ in range(INDEXES))
    assert INDEXES // 50 < accepted < INDEXES // 2


@ANYWHERE
@given(index=JSON | st.fixed_dictionaries({"weight_map": JSON}, optional={"metadata": JSON}))
@pytest.mark.full
def test_any_index(tmp_path, index):
    write_shards(tmp_path)
    assert not indexed(tmp_path, json.dumps(index).encode())


def configured(checkpoint: Path, component: Component, text: bytes, seen: set[str]) -> bool:
    """Whether a config is accepted for the checkpoint's tensors; then these load, and a model of it holds them."""
    (checkpoint / component / "config.json").write_bytes(text)
    try:
        stored = Checkpoint(checkpoint)[component]
        table = stored.table
    except ConfigError as error:
        assert "config.json" in str(error)
        return False
    if component_problems(stored):
        return False
    if str(table) not in seen:
        seen.add(str(table))
        source = stored.source()
        for target in stored.targets.values():
            assert source.read(target, tuple(map(slice, target.shape))).shape == target.shape
        assert stored.architecture.abstract() is not None
    return True


@pytest.mark.parametrize("component", list(Component))
@pytest.mark.full
def test_configs(checkpoint, component):
    rng, file = random.Random(str(component)), checkpoint / component / "config.json"
    kept, count = file.read_bytes(), CONFIGS // (len(Component) + 1)
    seen: set[str] = set()
    try:
        accepted = sum(
            configured(checkpoint, component, damaged_json(json.loads(kept), rng), seen) for _ in range(count)
        )
    finally:
        file.write_bytes(kept)
    assert 0 < accepted < count // 2


def test_schedulers(tmp_path, checkpoint):
    rng, values = random.Random(2), read_config(checkpoint / "scheduler" / "scheduler_config.json")
    (tmp_path / "scheduler").mkdir()
    accepted, count = 0, CONFIGS // (len(Component) + 1)
    for _ in range(count):
        (tmp_path / "scheduler" / "scheduler_config.json").write_bytes(damaged_json(values, rng))
        try:
            schedule = Checkpoint(tmp_path).schedule
        except ConfigError as error:
            assert "scheduler_config.json" in str(error)
            continue
        accepted += 1
        sigmas = schedule.sigmas(4, tokens=16)
        assert np.isfinite(sigmas).all() and (np.diff(sigmas) <= 0).all()
    assert 0 < accepted < count


@ANYWHERE
@given(changes=st.dictionaries(st.sampled_from(["num_layers", "axes_dims_rope", "patch_size", "x"]), JSON, max_size=2))
def test_any_config(checkpoint, changes):
    file = checkpoint / "transformer" / "config.json"
    kept = file.read_bytes()
    try:
        configured(checkpoint, Component.TRANSFORMER, json.dumps(json.loads(kept) | changes).encode(), set())
    finally:
        file.write_bytes(kept)


def test_tokenizers(checkpoint, tmp_path):
    rng = random.Random(3)
    values = json.loads((checkpoint / "tokenizer" / "tokenizer.json").read_text())
    (tmp_path / "tokenizer").mkdir()
    accepted = 0
    for _ in range(TOKENIZERS):
        (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(damaged_json(values, rng))
        read = Checkpoint(tmp_path)
        try:
            problems = tokenizer_problems(read.tokenizer, tmp_path, 512)
        except WeightsError:
            continue
        if not problems:
            accepted += 1
            assert PromptTokenizer(read.tokenizer).ids("a cat")
    assert 0 < accepted < TOKENIZERS


@pytest.mark.full
def test_arrays_of_orbax(checkpoint, tmp_path):
    rng, orbax = random.Random(4), tmp_path / "orbax"
    to_orbax(checkpoint, orbax)
    files = sorted((orbax / "vae" / "params").glob("*/.zarray"))
    accepted = 0
    for _ in range(ARRAYS):
        file = rng.choice(files)
        kept = file.read_bytes()
        file.write_bytes(damaged_json(json.loads(kept), rng))
        stored = Checkpoint(orbax)[Component.VAE]
        if not component_problems(stored):
            accepted += 1
            source = stored.source()
            for target in stored.targets.values():
                assert source.read(target, tuple(map(slice, target.shape))).shape == target.shape
        file.write_bytes(kept)
    assert accepted < ARRAYS
    assert Checkpoint(orbax).problems == []


@pytest.mark.full
def test_the_program_says_so(checkpoint, tmp_path, capsys):
    """A sample of all files through `qil validate`."""
    rng, damaged = random.Random(5), tmp_path / "checkpoint"
    shutil.copytree(checkpoint, damaged)
    files = sorted([*damaged.rglob("*.json"), *damaged.rglob("*.safetensors")])
    statuses = []
    for i in range(PROGRAMS):
        file = files[i % len(files)]
        kept = file.read_bytes()
        file.write_bytes(damaged_json(json.loads(kept), rng) if file.suffix == ".json" else kept[: -rng.randint(1, 9)])
        statuses.append(validate.main([str(damaged), "--values"]))
        said = capsys.readouterr()
        assert statuses[-1] in (0, 1)
        assert ("is sound" in said.out) == (statuses[-1] == 0)
        assert ("is not a sound checkpoint" in said.err) == (statuses[-1] == 1)
        file.write_bytes(kept)
    assert statuses.count(1) > PROGRAMS // 2
    assert validate.main([str(damaged)]) == 0
