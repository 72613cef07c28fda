"""Damaged LoRA files: a LoRA that can be used, or one error that names the file."""

import json
import random
import struct

import numpy as np
import pytest
from loras import random_lora

from qil_jax.weights import Component, LoRAError, read_lora, write_lora
from qil_jax.weights.released import CONFIGS
from qil_jax.weights.tables import table_of
from tools.fuzz.cases import mutate
from tools.fuzz.damage import damaged_json

SMALL = {**CONFIGS[Component.TRANSFORMER], "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
SMALL |= {"axes_dims_rope": [4, 6, 6], "joint_attention_dim": 48}
TABLE = table_of(Component.TRANSFORMER, SMALL)
MODULE = "transformer_blocks.0.attn.to_q"
DAMAGED = 1500


@pytest.mark.full
def test_damaged_files_are_read_or_refused(tmp_path):
    """Damage to the header, its configuration, or any byte: a LoRA of finite factors, or a LoRAError."""
    rng, source, file = random.Random(0), tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    write_lora(source, random_lora(TABLE, [MODULE, "img_in"], ranks=(2, 3), scale=0.5))
    data = source.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    config, counts = json.loads(header["__metadata__"]["lora_adapter_metadata"]), {"read": 0, "refused": 0}
    for i in range(DAMAGED):
        if i % 3 == 0:
            file.write_bytes(mutate(data, rng))
        else:
            text = damaged_json(header, rng)
            if i % 3 == 1:
                inner = damaged_json(config, rng).decode("utf-8", "replace")
                metadata = header["__metadata__"] | {"lora_adapter_metadata": inner}
                text = json.dumps({**header, "__metadata__": metadata}).encode()
            file.write_bytes(struct.pack("<Q", len(text)) + text + rest)
        try:
            lora = read_lora(file, TABLE)
        except LoRAError as error:
            assert str(file) in str(error)
            counts["refused"] += 1
            continue
        for change in lora.changes.values():
            assert change.a.shape[1] == change.b.shape[0] and np.isfinite(change.a).all() and 0 < change.scale < 1e10
        counts["read"] += 1
    assert min(counts.values()) > DAMAGED // 50, counts
