"""Which checkpoints can describe pictures."""

import json

import pytest

from qil_jax.models.config import ConfigError
from qil_jax.shipped import shipped_checkpoint
from qil_jax.weights import Checkpoint
from qil_jax.weights.released import CONFIGS
from qil_jax.weights.tables.entries import Component


def test_the_language_model_must_know_the_token_of_a_picture(tmp_path):
    assert not Checkpoint(shipped_checkpoint()).has_vision
    with pytest.raises(ConfigError, match=r"config\.json: missing"):
        _ = Checkpoint(tmp_path).has_vision
    file = tmp_path / "text_encoder" / "config.json"
    file.parent.mkdir()
    for changes, known in (({}, True), ({"image_token_id": 152064}, False), ({"vocab_size": 151656}, True)):
        file.write_text(json.dumps({**CONFIGS[Component.TEXT_ENCODER], **changes}))
        assert Checkpoint(tmp_path).has_vision is known
