"""The files by which a checkpoint folder of Qwen-Image becomes one of diffusers' QwenImageLayeredPipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

from qil_jax.models.vision_tower import VisionConfig
from qil_jax.weights.stored import read_config
from qil_jax.weights.structure import INDEX

PIPELINE = {"_class_name": "QwenImageLayeredPipeline", "processor": ["transformers", "Qwen2VLProcessor"]}
"""Entries of model_index.json."""
SCHEDULER = {"time_shift_type": "linear", "shift_terminal": False, "use_dynamic_shifting": True}
"""Entries of scheduler_config.json, by which noise levels are shifted by mu itself and not stretched."""
IMAGE_PROCESSOR = {
    "processor_class": "Qwen2VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "min_pixels": 3136,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
"""Qwen2-VL's constants in preprocessor_config.json, beside the sizes of the vision tower's patches."""


def make_layered(folder: Path, vision: VisionConfig) -> None:
    """Change and add the files of a folder of the released layout whose transformer and VAE are layered ones.

    Changed are the pipeline's class and the scheduler; the processor, which the pipeline needs for automatic captions,
    is added with the tokenizer's files unless it is there, for the vision tower of the config `vision`.

    Raises:
      ConfigError: if a config is missing or invalid.
    """
    index = folder / INDEX
    _write(index, {**json.loads(index.read_text()), **PIPELINE})
    scheduler = folder / "scheduler" / "scheduler_config.json"
    _write(scheduler, {**read_config(scheduler), **SCHEDULER})
    processor = folder / "processor"
    if processor.exists():
        return
    shutil.copytree(folder / "tokenizer", processor)
    patches = {
        "merge_size": vision.spatial_merge_size,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    _write(processor / "preprocessor_config.json", {**IMAGE_PROCESSOR, **patches})


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
