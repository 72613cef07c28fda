"""The order in which a job's pictures share compiled programs, and compilation of all of them ahead of time."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from qil_jax.encoders.lengths import image_bucket, text_bucket
from qil_jax.inference.batch import Item
from qil_jax.inference.job import PlannedResult
from qil_jax.inference.outline import Outline
from qil_jax.inference.pipeline import Pipeline, draw_noise
from qil_jax.inference.request import ResolvedSettings, Settings

OnProgram = Callable[[int, int], None]
"""A callback with (programs compiled, programs)."""
Name = tuple[object, ...]
"""What tells a program from all others of a job."""


def outline_of(result: PlannedResult) -> Outline:
    """The outline of a planned result."""
    return Outline.of(result.picture.size, result.options, result.prompt)


def arranged(results: Sequence[PlannedResult], pipeline: Pipeline, settings: Settings) -> list[PlannedResult]:
    """The results, those of equal and of similar lengths together, so that their batches need few programs."""
    side = pipeline.checkpoint.vae.scale_factor * pipeline.checkpoint.transformer.patch_size

    def lengths(result: PlannedResult) -> tuple[int, int]:
        outline = outline_of(result)
        tokens = (outline.layers + 2) * (outline.size[0] // side) * (outline.size[1] // side)
        return image_bucket(tokens), text_bucket(max(_words(outline, pipeline, settings)))

    return sorted(results, key=lengths)


def compile_programs(
    outlines: Sequence[Outline],
    pipeline: Pipeline,
    settings: Settings,
    *,
    batch: int,
    on_program: OnProgram | None = None,
) -> int:
    """Compile every program that a job needs, and let the compilation cache keep it.

    Args:
      outlines: the outlines of the job's pictures, as `arranged`.
      pipeline: a pipeline, which may be abstract.
      settings: settings of all pictures.
      batch: number of pictures at once.
      on_program: callback after every program.

    Returns:
      The number of programs.
    """
    settings = settings.filled(pipeline.checkpoint.defaults)
    pipeline.batch = batch
    programs: dict[Name, Callable[[], list[jax.stages.Lowered]]] = {}
    for start in range(0, len(outlines), batch):
        for name, lower in _programs(outlines[start : start + batch], pipeline, settings):
            programs.setdefault(name, lower)
    for done, lower in enumerate(programs.values(), start=1):
        for lowered in lower():
            lowered.compile()
        if on_program is not None:
            on_program(done, len(programs))
    return len(programs)


def _programs(
    outlines: Sequence[Outline], pipeline: Pipeline, settings: ResolvedSettings
) -> Iterator[tuple[Name, Callable[[], list[jax.stages.Lowered]]]]:
    """The programs of one batch: prompts, noise and pictures, modulation, and the denoiser's step."""
    items = [_blank(outline, pipeline, settings) for outline in outlines]
    for outline, item in zip(outlines, items, strict=True):
        for prompt in outline.prompts:
            length = text_bucket(len(pipeline.components.tokenizer.ids(prompt)))
            yield ("prompt", length), lambda prompt=prompt: [pipeline.prompts.lower(prompt)]
        yield ("picture", outline.size), lambda size=outline.size: pipeline.autoencoder.lower(size)
        yield ("noise", item.noise.shape), lambda shape=item.noise.shape: _drawn(shape)
    yield ("loading",), lambda: pipeline.denoiser.lower_loading()
    batch = pipeline.batch_of(items, settings)
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    yield ("batch", shapes), lambda: list(pipeline.denoiser.lower(batch, settings.rescale))


def _drawn(shape: tuple[int, ...]) -> list[jax.stages.Lowered]:
    """Draw noise once: its programs are small, and the library's own."""
    draw_noise(0, 0, shape)
    return []


def _blank(outline: Outline, pipeline: Pipeline, settings: ResolvedSettings) -> Item:
    """An item of an outline's shapes."""
    scale, z = pipeline.checkpoint.vae.scale_factor, pipeline.checkpoint.vae.z_dim
    width = pipeline.checkpoint.transformer.joint_attention_dim
    grid = (outline.size[1] // scale, outline.size[0] // scale, z)
    texts = [np.zeros((count, width), np.float32) for count in _words(outline, pipeline, settings)]
    return Item(
        noise=np.zeros((outline.layers + 1, *grid), np.float32),
        condition=np.zeros(grid, np.float32),
        prompt=texts[0],
        negative=texts[1] if len(texts) > 1 else None,
        sigmas=pipeline.sigmas(outline.size, settings),
    )


def _words(outline: Outline, pipeline: Pipeline, settings: Settings) -> list[int]:
    """Numbers of hidden states of an outline's prompts."""
    tokenizer, most = pipeline.components.tokenizer, settings.max_prompt_tokens
    return [min(tokenizer.count(prompt), most) for prompt in outline.prompts]
