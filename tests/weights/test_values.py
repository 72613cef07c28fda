"""`qil validate --values`: NaN, infinities, constants, and checksums that outlast conversion."""

import hashlib
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qil_jax.cli import validate
from qil_jax.programs import ended
from qil_jax.weights.convert import to_diffusers, to_orbax
from qil_jax.weights.tables.entries import Component
from tools.make_demo_checkpoint import write_checkpoint

FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def with_values(folder: Path, component: str, **tensors) -> None:
    file = folder / FILES[component]
    save_file(load_file(file) | tensors, file)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A checkpoint of three dtypes."""
    folder = tmp_path_factory.mktemp("values") / "released"
    write_checkpoint(folder)
    for component, dtype in ((Component.TRANSFORMER, ml_dtypes.bfloat16), (Component.TEXT_ENCODER, np.float16)):
        file = folder / FILES[component]
        save_file({name: x.astype(dtype) for name, x in load_file(file).items()}, file)
    return folder


@pytest.fixture(scope="module")
def orbax(released) -> Path:
    folder = released.with_name("orbax")
    to_orbax(released, folder)
    return folder


@pytest.mark.full
def test_zeros_and_constants_are_listed_and_sound(released, orbax, capsys):
    for folder in (released, orbax):
        assert validate.main([str(folder), "--values"]) == 0
        said = capsys.readouterr()
        assert "transformer/img_in.bias: all zero" in said.out
        assert "transformer/txt_norm.weight: all 1.0" in said.out
        assert "img_in.weight" not in said.out
        assert "0 of them with NaN or infinite values" in said.out


def test_the_first_form_reads_no_value(tmp_path, released):
    copy = Path(shutil.copytree(released, tmp_path / "copy"))
    with_values(copy, "vae", **{"quant_conv.bias": np.full(32, np.nan, np.float32)})
    assert validate.main([str(copy)]) == 0


@pytest.mark.full
def test_nan_and_infinities_are_unsound_in_either_layout(tmp_path, released, capsys):
    copy = Path(shutil.copytree(released, tmp_path / "copy"))
    taps = load_file(copy / FILES["vae"])["encoder.conv_in.weight"]
    taps[0, 0, 0] = np.inf  # a tap that no picture reads
    time = np.full((32, 32, 3, 1, 1), np.nan, np.float32)  # so is this convolution
    with_values(copy, "vae", **{"encoder.conv_in.weight": taps, "encoder.down_blocks.3.time_conv.weight": time})
    one = np.ones((512, 64), np.float16)
    one[300, 5] = -np.inf
    with_values(copy, "text_encoder", **{"model.embed_tokens.weight": one})
    with_values(copy, "transformer", **{"img_in.bias": np.full(64, np.nan, ml_dtypes.bfloat16)})
    to_orbax(copy, tmp_path / "orbax")
    for folder in (copy, tmp_path / "orbax"):
        assert validate.main([str(folder), "--values"]) == 1
        said = capsys.readouterr()
        assert "vae/encoder.conv_in.weight: 0 NaN and 9 infinite values" in said.err
        assert "vae/encoder.down_blocks.3.time_conv.weight: 3,072 NaN and 0 infinite values" in said.err
        assert "text_encoder/model.embed_tokens.weight: 0 NaN and 1 infinite values" in said.err
        assert "transformer/img_in.bias: 64 NaN and 0 infinite values" in said.err
        assert "4 of them with NaN" in said.out and "is sound" not in said.out


@pytest.mark.full
def test_checksums_outlast_conversion(tmp_path, released, orbax, monkeypatch, capsys):
    """Also where tensors are read in many pieces."""
    back = tmp_path / "back"
    to_diffusers(orbax, back)
    sums = tmp_path / "sums.json"
    assert validate.main([str(released), "--checksums", str(sums)]) == 0
    written = json.loads(sums.read_text())
    assert len(written) == sum(len(load_file(released / file)) for file in FILES.values())
    assert written["transformer/img_in.weight"]["dtype"] == "bfloat16"
    assert written["transformer/img_in.weight"]["shape"] == [64, 64]
    for piece in (8 << 20, 1 << 12):
        monkeypatch.setattr("qil_jax.weights.pieces.PIECE_BYTES", piece)
        for folder in (released, orbax, back):
            assert validate.main([str(folder), "--against", str(sums)]) == 0
    assert "0 differ" in capsys.readouterr().out


def test_a_checksum_is_that_of_the_stored_bytes(tmp_path, released, orbax):
    sums = tmp_path / "sums.json"
    assert validate.main([str(orbax), "--checksums", str(sums)]) == 0
    written = json.loads(sums.read_text())
    for component, file in FILES.items():
        for name, x in load_file(released / file).items():
            assert written[f"{component}/{name}"]["sha256"] == hashlib.sha256(x.tobytes()).hexdigest()


def test_one_flipped_bit_is_found(tmp_path, released, orbax, capsys):
    sums = tmp_path / "sums.json"
    assert validate.main([str(released), "--checksums", str(sums)]) == 0
    copy = Path(shutil.copytree(orbax, tmp_path / "copy"))
    chunk = next((copy / "transformer" / "params" / "backbone.blocks.text.mlp_in.kernel").glob("1.*"))
    data = bytearray(chunk.read_bytes())
    data[17] ^= 1
    chunk.write_bytes(data)
    capsys.readouterr()
    assert validate.main([str(copy), "--against", str(sums)]) == 1
    said = capsys.readouterr()
    assert said.err == "transformer/transformer_blocks.1.txt_mlp.net.0.proj.weight differs in sha256\n"
    assert "1 differ" in said.out


def test_another_model_differs(tmp_path, released, capsys):
    sums = tmp_path / "sums.json"
    assert validate.main([str(released), "--checksums", str(sums)]) == 0
    written = json.loads(sums.read_text())
    written["vae/absent"] = written.pop("vae/quant_conv.bias")
    written["vae/quant_conv.weight"]["shape"] = [1]
    sums.write_text(json.dumps(written))
    assert validate.main([str(released), "--against", str(sums)]) == 1
    said = capsys.readouterr().err
    assert "vae/absent is in the file of checksums only" in said
    assert "vae/quant_conv.bias is not in the file of checksums" in said
    assert "vae/quant_conv.weight differs in shape" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 3}', '{"a": {"sha256": 1}}'])
def test_a_file_of_something_else_is_refused(tmp_path, released, text, capsys):
    file = tmp_path / "sums.json"
    file.write_text(text)
    assert ended(validate.main, [str(released), "--against", str(file)]) == 2
    assert "sums.json" in capsys.readouterr().err


def test_a_file_of_checksums_is_never_overwritten(tmp_path, released, capsys):
    file = tmp_path / "sums.json"
    file.write_text("precious")
    with pytest.raises(SystemExit) as end:
        validate.main([str(released), "--checksums", str(file)])
    assert end.value.code == 2 and "sums.json exists" in capsys.readouterr().err
    assert file.read_text() == "precious"
