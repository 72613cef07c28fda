"""From a picture to its caption, against what diffusers' pipeline makes of the same weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import reference_tokenizer, tiny_text_encoder, write_tokenizer
from diffusers import QwenImageLayeredPipeline
from PIL import Image
from transformers import GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qil_jax.encoders.caption_prompts import CaptionLanguage, CaptionStyle, caption_chat
from qil_jax.encoders.caption_writer import CaptionWriter
from qil_jax.inference.caption_job import captions_of
from qil_jax.inference.images import preprocess
from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.weights import Checkpoint

STOPS = [151645, 151643, *range(7, 151643, 40)]
"""Ids that end a caption: so many that random weights write short ones."""


class Processor:
    """The released processor's steps, of which transformers' own class needs torchvision."""

    def __init__(self):
        self.pixels, self.tokenizer = Qwen2VLImageProcessorPil(max_pixels=12845056), reference_tokenizer()

    def __call__(self, *, text, images, padding, return_tensors):
        seen = self.pixels(images=[images], return_tensors=return_tensors)
        tokens = int(seen["image_grid_thw"].prod()) // 4
        read = self.tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * tokens), return_tensors=return_tensors)
        kinds = (read.input_ids == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        return _Inputs({**read, **seen, "mm_token_type_ids": kinds})

    def batch_decode(self, texts, **how):
        """The released stop ids are special tokens, which are not shown; those of this test are made so."""
        shown = [[i for i in ids.tolist() if i not in STOPS] for ids in texts]
        assert all(len(ids) - len(some) == 1 for ids, some in zip(texts, shown, strict=True))
        return self.tokenizer.batch_decode(shown, **how)


class _Inputs(dict):
    def __getattr__(self, name):
        return self[name]

    def to(self, _):
        return self


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of the weights, and diffusers' pipeline as far as it captions."""
    folder = tmp_path_factory.mktemp("captions")
    model = tiny_text_encoder()
    model.generation_config = GenerationConfig(
        bos_token_id=151643,
        pad_token_id=151643,
        eos_token_id=STOPS,
        do_sample=True,
        repetition_penalty=1.05,
        temperature=0.1,
        top_k=1,
        top_p=0.001,
    )
    model.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    return folder, SimpleNamespace(
        text_encoder=model,
        vl_processor=Processor(),
        image_caption_prompt_en=caption_chat(CaptionLanguage.EN, CaptionStyle.BROKEN),
    )


@pytest.mark.full
def test_captions_are_those_of_diffusers(checkpoint):
    """Pictures of two shapes in one batch, against one by one."""
    folder, pipeline = checkpoint
    noise = np.random.default_rng(0).integers(0, 256, (90, 150, 4), np.uint8)
    pictures = [Image.fromarray(noise), Image.new("RGB", (100, 300), "orange")]
    writer = CaptionWriter.load(Checkpoint(folder), sharding=Sharding(single_device_mesh(), INFERENCE_RULES))
    ours = captions_of(pictures, writer, resolution=96, language=CaptionLanguage.EN, style=CaptionStyle.BROKEN, batch=2)
    shown = [Image.fromarray(preprocess(picture, 96)[0]) for picture in pictures]
    with torch.no_grad():
        theirs = [QwenImageLayeredPipeline.get_image_caption(pipeline, picture, device="cpu") for picture in shown]
    assert ours == theirs and len(set(ours)) == 2 and min(map(len, ours)) > 10
