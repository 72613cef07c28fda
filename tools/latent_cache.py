"""The work of cache_latents.py: latents of all pictures and states of all captions, shard by shard."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from rich.progress import track

from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.files import write_whole
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.buckets import Bucket
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.latents import LatentIndex, LatentRecord, shard_facts, write_index, write_shard
from qil_jax.loader.loader import fitted, resized_record
from qil_jax.loader.samples import make_sample
from qil_jax.loader.tasks import Subject, Task, TaskConfig
from qil_jax.mesh import TRAINING_RULES, MeshShape, make_mesh, single_device_mesh
from qil_jax.models.axes import Axis
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.records.record import Record
from qil_jax.records.sources import RecordSource, open_sources
from qil_jax.training.batches import RowPlacement
from qil_jax.training.config_file import load_experiment
from qil_jax.training.inputs import CaptionEncoder, PictureEncoder
from qil_jax.weights import Component, component_config, load_model, require_sound
from qil_jax.weights.load import fingerprint_of

SHARD = 512
"""Records of a shard: what a run that is cut off may lose."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encoders:
    """What turns pictures and captions into numbers, `rows` of either at a time."""

    pictures: PictureEncoder
    captions: CaptionEncoder
    placement: RowPlacement
    width: int

    def latents(self, pictures: np.ndarray) -> np.ndarray:
        """Of pictures [n, y, x, 4], in rows of the mesh."""
        rows = self.placement.rows
        found = []
        for start in range(0, len(pictures), rows):
            part = pictures[start : start + rows]
            filled = np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), np.uint8)])[:, None]
            placed = self.placement.put(filled, (Axis.BATCH, None, None, None, None))
            found.append(np.asarray(self.pictures(placed))[: len(part), 0])
        return np.concatenate(found)

    def states(self, prompts: list[str]) -> list[np.ndarray]:
        """Of prompts, each cut to its own length."""
        rows = self.placement.rows
        found = []
        for start in range(0, len(prompts), rows):
            part = prompts[start : start + rows]
            ids, lengths = self.captions.ids(part + [""] * (rows - len(part)))
            placed = self.placement.put(ids, (Axis.BATCH, None)), self.placement.put(lengths, (Axis.BATCH,))
            states = np.asarray(self.captions(*placed))
            found += [s[: n - self.captions.drop] for s, n in zip(states, lengths[: len(part)].tolist(), strict=False)]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a folder of latents is made from, and how."""

    out: Path
    config: LoaderConfig
    vae: str
    text_encoder: str
    no_prompt: str
    text: int

    def claim(self) -> None:
        """Note it in the folder, or refuse to go on with latents that were made otherwise."""
        told = {name: repr(getattr(self, name)) for name in ("vae", "text_encoder", "no_prompt", "text")}
        told |= {"buckets": repr(self.config.buckets), "max_layers": repr(self.config.max_layers)}
        file = self.out / "job.json"
        if file.is_file() and json.loads(file.read_text()) != told:
            raise ValueError(
                f"{self.out} holds latents made with other weights or settings (job.json): give another --out"
            )
        write_whole(epath.Path(file), (json.dumps(told, indent=2) + "\n").encode())


def cache(arguments: argparse.Namespace, splits: Sequence[str]) -> None:
    """Encode what the command line names.

    Raises:
      ValueError, OSError: for input that cannot be used.
    """
    experiment = load_experiment(arguments.config)
    mesh = make_mesh(MeshShape.parse(arguments.mesh)) if arguments.mesh else single_device_mesh()
    encoders = load_encoders(arguments, mesh, text=experiment.data.text_tokens)
    job = Job(
        out=arguments.out,
        config=experiment.data.loader,
        vae=fingerprint_of((arguments.vae or arguments.checkpoint) / Component.VAE),
        text_encoder=fingerprint_of(arguments.checkpoint / Component.TEXT_ENCODER),
        no_prompt=experiment.loss.no_prompt if isinstance(experiment.loss, FlowLoss) else FlowLoss.no_prompt,
        text=experiment.data.text_tokens,
    )
    job.claim()
    for split in splits:
        encode_split(open_sources(arguments.records, split), split, job, encoders)


def load_encoders(arguments: argparse.Namespace, mesh: Mesh, *, text: int) -> Encoders:
    """The frozen parts of a checkpoint, on the mesh."""
    checkpoint, vae_folder = arguments.checkpoint, arguments.vae or arguments.checkpoint
    require_sound(checkpoint)
    vae_config = VAEConfig.from_json(component_config(vae_folder, Component.VAE))
    text_config = Qwen2_5VLConfig.from_json(component_config(checkpoint, Component.TEXT_ENCODER))
    if vae_config.input_channels != 4:
        raise ValueError(f"{vae_folder}: its VAE has {vae_config.input_channels} channels: --vae of a run of rgba_vae")
    load = lambda folder, abstract: load_model(folder, abstract, mesh=mesh, rules=TRAINING_RULES)  # noqa: E731
    vae = load(vae_folder / Component.VAE, nnx.eval_shape(lambda: RGBAVAE(vae_config, rngs=nnx.Rngs(0))))
    tower = load(
        checkpoint / Component.TEXT_ENCODER, nnx.eval_shape(lambda: TextEncoder(text_config, rngs=nnx.Rngs(0)))
    )
    return Encoders(
        pictures=PictureEncoder(vae),
        captions=CaptionEncoder(PromptTokenizer.load(checkpoint), tower, width=text),
        placement=RowPlacement(mesh, TRAINING_RULES, arguments.rows),
        width=text,
    )


def encode_split(source: RecordSource, split: str, job: Job, encoders: Encoders) -> None:
    """All records of a split, shard by shard; shards that are there are left alone, if they are of these records."""
    facts = source.facts()
    buckets, _, limits = fitted(facts, job.config)
    (nothing,) = encoders.states([job.no_prompt])
    rows: list[tuple[int, int, int, int]] = []
    parts = shards_of(buckets)
    for number, members in enumerate(track(parts, description=f"encoding {split}", disable=not sys.stdout.isatty())):
        sizes = [(buckets[i].width, buckets[i].height) for i in members]
        if shard_facts(job.out, split, number) is None:
            records = [resized_record(source[i], s, int(limits[i])) for i, s in zip(members, sizes, strict=True)]
            write_shard(job.out, split, number, encode_records(records, encoders), nothing)
        kept = shard_facts(job.out, split, number) or []
        captions = facts.captions[members].tolist()
        if [(w, h, c) for w, h, _, c in kept] != [(*s, c) for s, c in zip(sizes, captions, strict=True)]:
            raise ValueError(f"{job.out}: shard {number} of {split} is of other records: give another --out")
        rows += kept
    index = LatentIndex(
        shards=tuple(map(len, parts)),
        vae=job.vae,
        text_encoder=job.text_encoder,
        no_prompt=job.no_prompt,
        rows=tuple(rows),
        text=job.text,
    )
    write_index(job.out, split, index)
    print(f"{split}: {len(rows)} records in {len(parts)} shards of {job.out}", flush=True)


def shards_of(buckets: Sequence[Bucket]) -> list[list[int]]:
    """Numbers of records, in shards of one bucket each."""
    members: dict[Bucket, list[int]] = {}
    for index, bucket in enumerate(buckets):
        members.setdefault(bucket, []).append(index)
    return [same[start : start + SHARD] for same in members.values() for start in range(0, len(same), SHARD)]


def encode_records(records: Sequence[Record], encoders: Encoders) -> list[LatentRecord]:
    """Latents [composite, layers, foreground, composite over white] and states of the caption of each record."""
    pictures = [pictures_of(record) for record in records]
    latents = encoders.latents(np.concatenate(pictures))
    states = encoders.states([record.caption for record in records])
    ends = np.cumsum([0, *map(len, pictures)])
    return [
        LatentRecord(latents=latents[a:b], states=text, size=record.size, caption=len(record.caption))
        for a, b, text, record in zip(ends, ends[1:], states, records, strict=False)
    ]


def pictures_of(record: Record) -> np.ndarray:
    """What a record's samples are made of, whatever the task."""
    config, rng = TaskConfig(subject=Subject.FOREGROUND), np.random.default_rng(0)
    tasks = (Task.TEXT_TO_LAYERS, Task.TEXT_TO_RGBA, Task.TEXT_TO_RGB)
    return np.concatenate([make_sample(task, record, config, rng).pictures for task in tasks])
