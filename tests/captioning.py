"""A tiny checkpoint that captions, shortly."""

import json
from pathlib import Path

from tools.make_demo_checkpoint import Preset, write_checkpoint


def write_captioning_checkpoint(folder: Path) -> Path:
    """Write a random checkpoint for small pictures, in which many ids end a caption."""
    write_checkpoint(folder, preset=Preset.CAPTION)
    file = folder / "text_encoder" / "generation_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"eos_token_id": [*values["eos_token_id"], *range(1, 500, 17)]}))
    (folder / "qil.json").write_text('{"resolution": 64}')
    return folder
