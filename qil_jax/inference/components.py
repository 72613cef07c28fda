"""The components of a checkpoint on a mesh, each in device memory when the residency policy says so."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from qil_jax.choices import Passes, Residency
from qil_jax.encoders.caption_writer import CaptionWriter
from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.text_encoder import PromptEncoder
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.inference.batch import Ways
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.denoiser import Denoiser
from qil_jax.inference.modulator import Modulator
from qil_jax.inference.residency import Resident
from qil_jax.mesh import Sharding
from qil_jax.models.attention import Attend
from qil_jax.models.qwen2_5_vl import TextEncoder
from qil_jax.models.vld_mmdit import VLDMMDiT
from qil_jax.weights import Component, TransformerPart


class Components:
    """The captioner, the text encoder, the modulation network, the RGBA-VAE and the denoiser of a checkpoint.

    Attributes:
      tokenizer: the checkpoint's tokenizer, which is always loaded.
      captioner: vision-language model, whose language model is the text encoder; loaded when a caption is needed.
      prompts: tokenizer and text encoder.
      modulator: the transformer's modulation network.
      autoencoder: the RGBA-VAE.
      denoiser: the rest of the transformer.
      ways: numbers of shards into which the mesh splits a batch.
    """

    def __init__(
        self,
        checkpoint: LayeredCheckpoint,
        *,
        sharding: Sharding,
        attend: Attend,
        passes: Passes = Passes.BATCH,
        residency: Residency = Residency.ALL,
        is_abstract: bool = False,
    ):
        """Load all components, or none yet, as `residency` says.

        Args:
          checkpoint: the opened checkpoint.
          sharding: mesh on which parameters and batches are placed, and the rules that map logical axes to its axes.
          attend: the transformer's attention.
          passes: the way in which the passes of guidance are computed.
          residency: the policy by which components stay in device memory.
          is_abstract: whether parameters are shapes only, by which programs can be compiled but not run.
        """
        self.sharding, self.residency, self.passes = sharding, residency, passes
        mesh = sharding.mesh
        self.ways = Ways.of(sharding, passes)
        self.tokenizer = PromptTokenizer(checkpoint.tokenizer)
        read: Callable[..., Any] = checkpoint.abstract if is_abstract else checkpoint.load
        load = functools.partial(read, sharding=sharding, dtype=checkpoint.dtype)
        loras = [(applied.lora, applied.scale) for applied in checkpoint.loras]

        def transformer(part: TransformerPart) -> VLDMMDiT:
            return load(Component.TRANSFORMER) if is_abstract else load(part, loras=loras)

        def encoder() -> TextEncoder:
            return self._captioners_encoder() or load(Component.TEXT_ENCODER)

        def captioner() -> CaptionWriter:
            self.prompts.free()  # the captioner has the language model too
            return CaptionWriter.load(checkpoint, sharding=sharding, dtype=checkpoint.dtype, is_abstract=is_abstract)

        self.prompts = Resident(lambda: PromptEncoder(self.tokenizer, encoder(), mesh=mesh))
        self.captioner = Resident(captioner)
        modulation, backbone = TransformerPart
        self.modulator = Resident(lambda: Modulator(transformer(modulation).modulation, mesh=mesh))
        self.autoencoder = Resident(lambda: Autoencoder(load(Component.VAE), mesh=mesh))
        self.denoiser = Resident(
            lambda: Denoiser(transformer(backbone), sharding=sharding, attend=attend, passes=passes)
        )
        self._always: Sequence[Resident[Any]] = (self.prompts, self.modulator, self.autoencoder, self.denoiser)
        if residency is Residency.ALL:
            for component in self._always:
                component()

    def enter(self, *needed: Resident[Any]) -> None:
        """Begin a phase that needs these components: under Residency.PHASES the others are freed."""
        if self.residency is not Residency.PHASES:
            return
        if self.prompts in needed:
            self.prompts()  # before the captioner is freed, whose language model it takes over
        for component in (*self._always, self.captioner):
            if component not in needed:
                component.free()

    def _captioners_encoder(self) -> TextEncoder | None:
        """The language model of a loaded captioner, of which Residency.PHASES frees the rest."""
        if not self.captioner.is_loaded:
            return None
        captioner = self.captioner().captioner
        encoder = captioner.text_encoder()
        if self.residency is Residency.PHASES:
            captioner.free_vision()
            self.captioner.forget()
        return encoder
