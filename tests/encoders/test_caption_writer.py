"""What a checkpoint's files say about captions, and who is told that they do not fit together."""

import json
import shutil
from pathlib import Path

import pytest
from captioning import write_captioning_checkpoint

from qil_jax.encoders.caption_writer import CaptionConfig
from qil_jax.errors import QilError
from qil_jax.shipped import shipped_checkpoint
from qil_jax.weights import Checkpoint

GENERATION, PROCESSOR = "text_encoder/generation_config.json", "processor/preprocessor_config.json"
CONFIG = "text_encoder/config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_captioning_checkpoint(tmp_path_factory.mktemp("captions") / "checkpoint")


def config_of(folder: Path) -> CaptionConfig:
    return CaptionConfig.of(Checkpoint(folder))


def test_configs_of_a_checkpoint(checkpoint, tmp_path):
    config = config_of(checkpoint)
    assert config.generation.repetition_penalty == 1.05 and config.pixels.max_pixels == 12845056
    shutil.copytree(checkpoint, tmp_path / "bare")
    (tmp_path / "bare" / PROCESSOR).unlink()
    assert config_of(tmp_path / "bare") == config


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (GENERATION, None, "generation_config.json: missing"),
        (GENERATION, "{", "generation_config.json"),
        (GENERATION, '{"eos_token_id": "x"}', "generation_config.json"),
        (PROCESSOR, '{"patch_size": 16}', r"patch, temporal and merge size \(16, 2, 2\) are not \(14, 2, 2\)"),
        (PROCESSOR, "[]", "preprocessor_config.json"),
        (CONFIG, '{"image_token_id": 7}', r"the tokenizer reads <\|vision_start\|><\|image_pad\|><\|vision_end\|> as"),
        (CONFIG, '{"image_token_id": 512}', "its text encoder knows no token of a picture, so it cannot caption"),
    ],
)
def test_files_that_do_not_fit_are_told(checkpoint, tmp_path, file, text, says):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    if text is None:
        (broken / file).unlink()
    elif file == CONFIG:
        (broken / file).write_text(json.dumps(json.loads((broken / file).read_text()) | json.loads(text)))
    else:
        (broken / file).write_text(text)
    with pytest.raises(QilError, match=says):
        config_of(broken)


def test_the_shipped_model_captions_nothing():
    with pytest.raises(QilError, match="knows no token of a picture"):
        config_of(shipped_checkpoint())
