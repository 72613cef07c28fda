"""Descriptions of pictures by Qwen2.5-VL on a mesh, from token ids and patches to token ids."""

import functools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from qil_jax.encoders.generation import Generation
from qil_jax.encoders.lengths import image_bucket, round_up, row_bucket, text_bucket
from qil_jax.errors import QilError
from qil_jax.host_memory import return_freed
from qil_jax.mesh import Sharding, constrain, fetch, put
from qil_jax.models.axes import Axes, Axis
from qil_jax.models.decoding import Cache, Choice, Prompts, Written, decode, prefill
from qil_jax.models.layers import use_matmul
from qil_jax.models.products import InPlace
from qil_jax.models.qwen2_5_vl import ON_ONE_CPU, PLAIN, TextEncoder, VisionLanguage, text_encoder_of

Programs = tuple[jax.stages.Compiled, jax.stages.Compiled]
"""One reads prompts, the other writes."""
SHORTEST = 64
"""Least number of tokens to which pictures and prompts are padded."""


class Captioner:
    """Qwen2.5-VL on a mesh: it reads prompts with a picture each, and writes text.

    Two programs are compiled per shape of batch: one reads the prompts, one writes.

    Attributes:
      config: the model's config.
      state: the parameters.
    """

    def __init__(self, model: VisionLanguage, *, sharding: Sharding):
        """Take a model whose parameters lie on the mesh."""
        model = nnx.merge(*nnx.split(model))
        self.config, self._sharding, mesh = model.config, sharding, sharding.mesh
        self._how = PLAIN
        if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
            self._how = ON_ONE_CPU
            use_matmul(model.lm_head, InPlace())
        self._graph, self.state = nnx.split(model)
        self._prefill = jax.jit(self._read_prompts, static_argnames="room")
        self._decode = jax.jit(self._write, static_argnames="room", donate_argnames="cache")
        self._compiled: dict[Hashable, Programs] = {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        patches: Sequence[Float[np.ndarray, "_ c"]],
        grids: Sequence[tuple[int, int]],
        generation: Generation,
        *,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """What is written for each prompt, without the id that ends it.

        A row's ids depend on its own prompt, picture and seed only. Rows, prompts and pictures are padded to few
        lengths, so that other batches rarely compile anything; nor do other values of `generation`, but of
        `max_new_tokens`, which is rounded up to few lengths, too, and the number of ids that end a text.

        Args:
          prompts: token ids with the model's `image_token_id` once, in whose place the picture's tokens are read.
          patches: patches of each prompt's picture, in the processor's order.
          grids: rows and columns of each picture in patches.
          generation: how the ids are chosen, and how many.
          seeds: seed of each row, if ids are drawn; None: 0 for all.

        Raises:
          QilError: if the lists' lengths differ, a prompt has no or several pictures, patches do not fit their grid,
            or `free_vision` was called.
        """
        seeds = [0] * len(prompts) if seeds is None else seeds
        self._require_fit(prompts, patches, grids, seeds)
        if not prompts:
            return []
        room = text_bucket(generation.max_new_tokens)
        batch, how = self._inputs(prompts, patches, grids, generation, seeds)
        read, write = self._programs(batch, how, room=room)
        written, _ = write(self.state, *read(self.state, batch), *how)
        ids, lengths = fetch(written.ids), fetch(written.lengths)
        return [ids[i, : lengths[i]].tolist() for i in range(len(prompts))]

    def compile(
        self,
        prompts: Sequence[Sequence[int]],
        patches: Sequence[Float[np.ndarray, "_ c"]],
        grids: Sequence[tuple[int, int]],
        generation: Generation,
    ) -> Programs:
        """The programs of `generate` for inputs of these lengths; parameters may be abstract."""
        batch, how = self._inputs(prompts, patches, grids, generation, [0] * len(prompts))
        return self._programs(batch, how, room=text_bucket(generation.max_new_tokens))

    def text_encoder(self) -> TextEncoder:
        """The text encoder, which shares the parameters of the language model."""
        return text_encoder_of(nnx.merge(self._graph, self.state).language)

    def free_vision(self) -> None:
        """Delete the parameters of the vision tower and the output head; nothing can be written any more."""
        for part in ("visual", "lm_head"):
            for leaf in jax.tree.leaves(self.state.pop(part)):
                leaf.delete()

    def _programs(self, batch: Prompts, how: Any, *, room: int) -> Programs:
        """The programs for inputs of these shapes, compiled one after the other before either uses memory."""
        key = (room, *((x.shape, x.dtype) for x in jax.tree.leaves((batch, how))))
        if key not in self._compiled:
            reading = self._prefill.lower(self.state, batch, room=room)
            read = reading.compile()
            return_freed()
            shaped = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            logits, cache = jax.tree.map(shaped, reading.out_info, read.output_shardings)
            write = self._decode.lower(self.state, logits, cache, *how, room=room).compile()
            return_freed()
            self._compiled[key] = read, write
        return self._compiled[key]

    def _require_fit(self, prompts: Any, patches: Any, grids: Any, seeds: Any) -> None:
        """Refuse inputs from which no batch can be made, and any once the tower is freed."""
        if "visual" not in self.state:
            raise QilError("the vision tower is freed: load the captioner again")
        counts = {len(prompts), len(patches), len(grids), len(seeds)}
        if len(counts) > 1:
            raise QilError(f"give as many prompts, pictures, grids and seeds: {sorted(counts)} are given")
        for i, (ids, picture, grid) in enumerate(zip(prompts, patches, grids, strict=True)):
            if (found := list(ids).count(self.config.image_token_id)) != 1:
                raise QilError(f"prompt {i} has the picture's id {self.config.image_token_id} {found} times: once")
            wanted = (grid[0] * grid[1], self.config.vision.patch_width)
            if picture.shape != wanted or any(side % self.config.vision.spatial_merge_size for side in grid):
                raise QilError(f"picture {i} has patches {picture.shape}: a grid {grid} has {wanted}, its sides even")

    def _inputs(
        self, prompts: Any, patches: Any, grids: Any, generation: Generation, seeds: Sequence[int]
    ) -> tuple[Prompts, tuple[Choice, Array, Array]]:
        """The padded batch on the mesh, and how its rows are written: choice, largest length, ids that end a text."""
        rows = round_up(row_bucket(len(prompts), 1 << 30), self._sharding.ways(Axis.BATCH))
        batch = self._place(self._batch(prompts, patches, grids, generation, rows=rows))
        limit, stops = (
            self._place(np.array(value, np.int32), sharded=False)
            for value in (generation.max_new_tokens, generation.eos_token_id)
        )
        return batch, (self._place(_choice(generation, seeds, rows=rows)), limit, stops)

    def _batch(self, prompts: Any, patches: Any, grids: Any, generation: Generation, *, rows: int) -> Prompts:
        """Prompts on the host, padded to common lengths."""
        merged = self.config.vision.spatial_merge_size**2
        tokens = image_bucket(max(SHORTEST, *(len(picture) // merged for picture in patches)))
        expanded = [self._expanded(ids, len(picture) // merged) for ids, picture in zip(prompts, patches, strict=True)]
        longest = image_bucket(max(SHORTEST, *map(len, expanded)))
        batch = Prompts(
            ids=np.full((rows, longest), generation.pad_token_id, np.int32),
            lengths=np.array([*map(len, expanded), *[0] * (rows - len(expanded))], np.int32),
            patches=np.zeros((rows, tokens * merged, self.config.vision.patch_width), np.float32),
            grids=np.zeros((rows, 2), np.int32),
        )
        for i, (ids, picture) in enumerate(zip(expanded, patches, strict=True)):
            batch.ids[i, : len(ids)], batch.patches[i, : len(picture)], batch.grids[i] = ids, picture, grids[i]
        return batch

    def _expanded(self, ids: Sequence[int], tokens: int) -> list[int]:
        """A prompt with the picture's id once for each of its tokens."""
        at = list(ids).index(self.config.image_token_id)
        return [*ids[:at], *[ids[at]] * tokens, *ids[at + 1 :]]

    def _place(self, tree: Any, *, sharded: bool = True) -> Any:
        """Arrays on the mesh, by default with rows as their leading axis."""
        axes = lambda x: (Axis.BATCH, *[None] * (x.ndim - 1)) if sharded else ()
        return jax.tree.map(lambda x: put(x, self._sharding.named(axes(x))), tree)

    def _pin(self, x: Array, axes: Axes) -> Array:
        """Constrain an activation to the mesh, along those of its axes that divide."""
        ways = [self._sharding.ways(axis) if axis else 1 for axis in axes]
        fitting = (axis if size % n == 0 else None for size, axis, n in zip(x.shape, axes, ways, strict=True))
        return constrain(self._sharding)(x, tuple(fitting))

    def _read_prompts(self, state: nnx.State, batch: Prompts, *, room: int) -> tuple[Array, dict[str, Array]]:
        """Logits, and the cache as a dictionary, which may hold shapes and shardings, too."""
        model = nnx.merge(self._graph, state)
        logits, cache = prefill(model, batch, room=room, constrain=self._pin, how=self._how)
        return logits, vars(cache)

    def _write(
        self,
        state: nnx.State,
        logits: Array,
        cache: dict[str, Array],
        choice: Choice,
        limit: Array,
        stops: Array,
        *,
        room: int,
    ) -> tuple[Written, dict[str, Array]]:
        write = functools.partial(decode, room=room, limit=limit, stops=stops, constrain=self._pin, fold=self._how.fold)
        written, after = write(nnx.merge(self._graph, state), (logits, Cache(**cache)), choice)
        return written, vars(after)


def _choice(generation: Generation, seeds: Sequence[int], *, rows: int) -> Choice:
    """The choice of all rows on the host."""
    filled = lambda value, dtype: np.full(rows, value, dtype)
    return Choice(
        repetition_penalty=filled(generation.repetition_penalty, np.float32),
        is_sampled=filled(generation.is_sampled, bool),
        temperature=filled(generation.temperature, np.float32),
        top_k=filled(generation.top_k or np.iinfo(np.int32).max, np.int32),
        top_p=filled(generation.top_p, np.float32),
        seeds=np.array([*seeds, *[0] * (rows - len(seeds))], np.uint32),
    )
