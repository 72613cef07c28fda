"""A checkpoint folder of either layout, opened once: what follows from its files is read and derived once, and kept.

checkpoint = Checkpoint.open(folder)
checkpoint.vae.z_dim                        # parsed configs
checkpoint[Component.VAE].table             # what each component's folder holds
checkpoint.load(Component.VAE, Sharding(mesh, rules))
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from flax import nnx
from tokenizers import Tokenizer

from qil_jax.files import no_folder
from qil_jax.flow import Schedule
from qil_jax.mesh import Sharding
from qil_jax.models.config import ConfigError
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder, VisionLanguage
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.weights.architecture import Part, TextEncoderPart, TransformerPart, component_of
from qil_jax.weights.identity import PARTS, fingerprint
from qil_jax.weights.load import load_part, placed_shapes
from qil_jax.weights.merge import Scaled
from qil_jax.weights.stored import StoredComponent, read_config
from qil_jax.weights.strict import WeightsError
from qil_jax.weights.structure import INDEX, StructureError, component_problems, misfits, pipeline_problems
from qil_jax.weights.tables.entries import Component
from qil_jax.weights.tokenizer import read_tokenizer, tokenizer_problems


class Checkpoint:
    """A checkpoint folder as it was when its files were first read; to see what changed since, open it again.

    Nothing is read before it is asked for, so a folder may lack what is never asked for; `open` checks all of it. No
    tensor is kept in memory, and no file stays open. Members that need a config raise a ConfigError if it is missing or
    not one that the models support.

    Attributes:
      folder: folder that holds model_index.json.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._stored = {component: StoredComponent(self.folder / component, component) for component in Component}
        self._fingerprints: dict[tuple[str, ...], str] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "Checkpoint":
        """Check the structure of a complete checkpoint, of the released layout (diffusers) or of ours (orbax).

        Raises:
          StructureError: if it is not sound; the message lists every problem.
        """
        checkpoint = cls(folder)
        checkpoint.require_sound()
        return checkpoint

    def __getitem__(self, component: Component) -> StoredComponent:
        """What the folder of a component holds."""
        return self._stored[component]

    @property
    def transformer(self) -> MMDiTConfig:
        """The config of the VLD-MMDiT."""
        return self[Component.TRANSFORMER].architecture.config

    @property
    def vae(self) -> VAEConfig:
        """The config of the RGBA-VAE."""
        return self[Component.VAE].architecture.config

    @property
    def text_encoder(self) -> Qwen2_5VLConfig:
        """The config of the text encoder."""
        return self[Component.TEXT_ENCODER].architecture.config

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The schedule of the sampler's noise levels."""
        return Schedule.from_json(read_config(self.folder / "scheduler" / "scheduler_config.json"))

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          FileNotFoundError: if there is none.
          WeightsError: if its files cannot be read as a tokenizer, or are incomplete.
        """
        return read_tokenizer(self.folder)

    @property
    def has_vision(self) -> bool:
        """Whether the text encoder can describe pictures: whether it knows the token of a picture.

        Every text encoder has a vision tower, but that of a small model may be a placeholder which nothing can read.
        """
        return self.text_encoder.image_token_id < self.text_encoder.vocab_size

    def fingerprint(self, *parts: str) -> str:
        """16 hexadecimal digits that depend on weights, configs and tokenizer, but not on folder names.

        Only a thousandth of large files is read: the fingerprint identifies a checkpoint, but does not detect damage.
        It differs between the two layouts of a checkpoint.

        Args:
          parts: names of the subfolders on which it depends, absent ones are skipped; none: all that determine results.

        Raises:
          OSError: if a file cannot be read.
        """
        if parts not in self._fingerprints:
            self._fingerprints[parts] = fingerprint(self.folder, parts or PARTS)
        return self._fingerprints[parts]

    @functools.cached_property
    def problems(self) -> list[str]:
        """All problems: of configs, files, names, shapes and dtypes, and of components that do not fit together."""
        if not self.folder.is_dir():
            return [no_folder(self.folder)]
        if not (self.folder / INDEX).is_file():
            return [f"{self.folder / INDEX}: missing; give the top folder of the release"]
        problems = pipeline_problems(self.folder / INDEX)
        for stored in self._stored.values():
            problems += component_problems(stored)
        try:
            _ = self.schedule
        except ConfigError as error:
            problems.append(str(error))
        problems += self._tokenizer_problems()
        if all(stored.is_described for stored in self._stored.values()):
            problems += misfits(self.transformer, self.vae, self.text_encoder)
        return problems

    def _tokenizer_problems(self) -> list[str]:
        rows = self.text_encoder.vocab_size if self[Component.TEXT_ENCODER].is_described else None
        try:
            return tokenizer_problems(self.tokenizer, self.folder / "tokenizer", rows)
        except FileNotFoundError as error:
            return [str(error)]
        except WeightsError as error:
            return list(error.problems)

    def require_sound(self) -> None:
        """Refuse a checkpoint that has problems.

        Raises:
          StructureError: if there are any; the message lists all of them.
        """
        if self.problems:
            raise StructureError(self.folder, self.problems)

    @overload
    def abstract(
        self,
        part: Literal[Component.TRANSFORMER] | TransformerPart,
        sharding: Sharding | None = None,
        *,
        dtype: Any = None,
    ) -> VLDMMDiT: ...
    @overload
    def abstract(
        self, part: Literal[Component.VAE], sharding: Sharding | None = None, *, dtype: Any = None
    ) -> RGBAVAE: ...
    @overload
    def abstract(
        self,
        part: Literal[Component.TEXT_ENCODER],
        sharding: Sharding | None = None,
        *,
        dtype: Any = None,
    ) -> TextEncoder: ...
    @overload
    def abstract(
        self, part: TextEncoderPart, sharding: Sharding | None = None, *, dtype: Any = None
    ) -> VisionLanguage: ...
    def abstract(self, part: Part, sharding: Sharding | None = None, *, dtype: Any = None) -> nnx.Module:
        """The module that `load` returns, with shapes in place of parameters; it is the caller's own.

        Args:
          part: component or part of one; of a part of the transformer all of it.
          sharding: mesh on which the parameters would be placed, and its rules; None: dtypes and placements are left
            open.
          dtype: dtype of the loaded parameters, as in `load`.

        Raises:
          ConfigError: if the component's config is missing, or not one that the models support.
          MeshError: if rules, mesh and shapes are inconsistent.
          WeightsError: if there is a sharding, and the files cannot be read.
        """
        stored = self[component_of(part)]
        if sharding is None:
            return stored.architecture.abstract(part)
        return placed_shapes(stored, part, sharding, dtype=dtype)

    @overload
    def load(
        self,
        part: Literal[Component.TRANSFORMER] | TransformerPart,
        sharding: Sharding,
        *,
        dtype: Any = None,
        layered: bool = False,
        loras: Sequence[Scaled] = (),
    ) -> VLDMMDiT: ...
    @overload
    def load(
        self, part: Literal[Component.VAE], sharding: Sharding, *, dtype: Any = None, layered: bool = False
    ) -> RGBAVAE: ...
    @overload
    def load(self, part: Literal[Component.TEXT_ENCODER], sharding: Sharding, *, dtype: Any = None) -> TextEncoder: ...
    @overload
    def load(self, part: TextEncoderPart, sharding: Sharding, *, dtype: Any = None) -> VisionLanguage: ...
    def load(
        self,
        part: Part,
        sharding: Sharding,
        *,
        dtype: Any = None,
        layered: bool = False,
        loras: Sequence[Scaled] = (),
    ) -> nnx.Module:
        """Load a component with its parameters placed on the mesh.

        Only the module's parameters are read, in parallel, and of these each process reads its own shards; beside the
        parameters, host memory stays near the size of one block. All processes of the mesh must call this function.

        Args:
          part: component or part to load; of a part of the transformer, the other parameters stay abstract.
          sharding: mesh on which the parameters are placed, and the rules that map logical axes to mesh axes.
          dtype: dtype of the loaded parameters, except quantised kernels and their scales; None: the stored dtype.
          layered: whether a component of Qwen-Image is loaded as that of a layered model, where parameters that are not
            stored have their initial values.
          loras: LoRAs of the transformer, each with a factor, which are added to the kernels as they are read: in fp32,
            and then rounded once.

        Raises:
          ConfigError: if the component's config is missing, or not one that the models support.
          LoRAError: if LoRAs do not fit the component; raised before any tensor of it is read.
          MeshError: if rules, mesh and shapes are inconsistent; raised before any tensor is read.
          WeightsError: if the files cannot be read.
        """
        stored = self[component_of(part)]
        architecture = stored.architecture.layered if layered else stored.architecture
        return load_part(stored, architecture, part, sharding, dtype=dtype, loras=loras)
