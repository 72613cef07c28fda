"""Latents of all pictures and hidden states of all captions, encoded beforehand: what `qil cache-latents` writes."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from rich.progress import track

from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.text_encoder import PromptEncoder
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.errors import QilError, say
from qil_jax.files import write_whole
from qil_jax.flow.loss import FlowLoss
from qil_jax.identity import to_json
from qil_jax.loader.buckets import Bucket
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.latent_files import LatentIndex, LatentRecord, shard_records, write_index, write_shard
from qil_jax.loader.loader import fitted
from qil_jax.loader.samples import make_sample, resized_record
from qil_jax.loader.tasks import Subject, Task, TaskConfig
from qil_jax.mesh import TRAINING_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.axes import Axis
from qil_jax.records.record import Record
from qil_jax.records.sources import RecordSource, open_sources
from qil_jax.strict_json import read_json
from qil_jax.training.batches import RowPlacement
from qil_jax.training.config_file import load_experiment
from qil_jax.weights import Checkpoint, Component

SHARD = 512
"""Maximum number of records of a shard; an interrupted run loses at most the work on one shard."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encoders:
    """The encoders of images and captions, each applied to as many rows at a time as the mesh holds.

    Attributes:
      autoencoder: RGBA-VAE that encodes images.
      prompts: text encoder that encodes captions.
      placement: placement of the rows of a batch on the mesh.
      width: maximum number of tokens of a prompt.
    """

    autoencoder: Autoencoder
    prompts: PromptEncoder
    placement: RowPlacement
    width: int

    def latents(self, pictures: UInt8[np.ndarray, "n y x 4"]) -> Float[np.ndarray, "n h w z"]:
        """Latents [n, h, w, z] of images [n, y, x, 4]."""
        rows = self.placement.rows
        found = []
        for start in range(0, len(pictures), rows):
            part = pictures[start : start + rows]
            filled = np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), np.uint8)])[:, None]
            placed = self.placement.put(filled, (Axis.BATCH, None, None, None, None))
            found.append(np.asarray(self.autoencoder.encode_rows(placed))[: len(part), 0])
        return np.concatenate(found)

    def states(self, prompts: list[str]) -> list[np.ndarray]:
        """Hidden states of prompts, each cut to its own length."""
        rows = self.placement.rows
        found = []
        for start in range(0, len(prompts), rows):
            part = prompts[start : start + rows]
            ids, lengths = self.prompts.padded_ids(part + [""] * (rows - len(part)), max_tokens=self.width)
            placed = self.placement.put(ids, (Axis.BATCH, None)), self.placement.put(lengths, (Axis.BATCH,))
            states = np.asarray(self.prompts.encode_rows(*placed))
            found += [s[: n - self.prompts.drop] for s, n in zip(states, lengths[: len(part)].tolist(), strict=False)]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of a folder of latents.

    Attributes:
      out: folder to which the latents are written.
      config: config of the loader that will read the latents.
      vae: fingerprint of the VAE.
      text_encoder: fingerprint of the text encoder.
      no_prompt: prompt that replaces a missing caption.
      text: maximum number of tokens of a prompt.
    """

    out: Path
    config: LoaderConfig
    vae: str
    text_encoder: str
    no_prompt: str
    text: int

    def claim(self) -> None:
        """Write the settings into the folder, or refuse to continue latents that were made under others.

        Raises:
          QilError: if there are such latents.
        """
        settings = {name: getattr(self, name) for name in ("vae", "text_encoder", "no_prompt", "text")}
        settings |= {"buckets": to_json(self.config.buckets), "max_layers": self.config.max_layers}
        file = self.out / "job.json"
        if file.is_file() and read_json(file, fix="give another --out") != settings:
            raise QilError(
                f"{self.out} holds latents made with other weights or settings (job.json): give another --out"
            )
        write_whole(epath.Path(file), (json.dumps(settings, indent=2) + "\n").encode())


def cache(arguments: argparse.Namespace, splits: Sequence[str]) -> None:
    """Encode the splits of the records that the command line names.

    Raises:
      QilError: if the input cannot be used.
    """
    experiment = load_experiment(arguments.config)
    sources = {split: open_sources(arguments.records, split) for split in splits}
    mesh = make_mesh(MeshShape.parse(arguments.mesh)) if arguments.mesh else single_device_mesh()
    checkpoint = Checkpoint.open(arguments.checkpoint)
    vae = checkpoint if arguments.vae is None else Checkpoint(arguments.vae)
    encoders = load_encoders(
        checkpoint, vae, Sharding(mesh, TRAINING_RULES), rows=arguments.rows, text=experiment.data.text_tokens
    )
    job = Job(
        out=arguments.out,
        config=experiment.data.loader,
        vae=vae.fingerprint(Component.VAE),
        text_encoder=checkpoint.fingerprint(Component.TEXT_ENCODER),
        no_prompt=experiment.loss.no_prompt if isinstance(experiment.loss, FlowLoss) else FlowLoss.no_prompt,
        text=experiment.data.text_tokens,
    )
    job.claim()
    for split, source in sources.items():
        encode_split(source, split, job, encoders)


def load_encoders(checkpoint: Checkpoint, vae: Checkpoint, sharding: Sharding, *, rows: int, text: int) -> Encoders:
    """The text encoder of a checkpoint and the VAE of one, which may be another, on the mesh.

    Raises:
      QilError: if the VAE has no alpha channel.
    """
    channels = vae.vae.input_channels
    if channels != 4:
        raise QilError(f"{vae.folder}: its VAE has {channels} channels: --vae of a run of rgba_vae")
    autoencoder = Autoencoder(vae.load(Component.VAE, sharding), mesh=sharding.mesh)
    tower = checkpoint.load(Component.TEXT_ENCODER, sharding)
    return Encoders(
        autoencoder=autoencoder,
        prompts=PromptEncoder(PromptTokenizer(checkpoint.tokenizer), tower, mesh=sharding.mesh),
        placement=RowPlacement(sharding, rows),
        width=text,
    )


def encode_split(source: RecordSource, split: str, job: Job, encoders: Encoders) -> None:
    """Encode all records of a split, shard by shard; existing shards of these records are kept.

    Raises:
      QilError: if an existing shard is of other records.
    """
    metadata = source.metadata()
    buckets, _, limits = fitted(metadata, job.config)
    (nothing,) = encoders.states([job.no_prompt])
    rows: list[tuple[int, int, int, int]] = []
    shards = shards_of(buckets)
    for number, members in enumerate(track(shards, description=f"encoding {split}", disable=not sys.stdout.isatty())):
        sizes = [(buckets[i].width, buckets[i].height) for i in members]
        if shard_records(job.out, split, number) is None:
            records = [resized_record(source[i], s, int(limits[i])) for i, s in zip(members, sizes, strict=True)]
            write_shard(job.out, split, number, encode_records(records, encoders), nothing)
        kept = shard_records(job.out, split, number) or []
        captions = metadata.captions[members].tolist()
        if [(w, h, c) for w, h, _, c in kept] != [(*s, c) for s, c in zip(sizes, captions, strict=True)]:
            raise QilError(f"{job.out}: shard {number} of {split} is of other records: give another --out")
        rows += kept
    index = LatentIndex(
        shards=tuple(map(len, shards)),
        vae=job.vae,
        text_encoder=job.text_encoder,
        no_prompt=job.no_prompt,
        rows=tuple(rows),
        text=job.text,
    )
    write_index(job.out, split, index)
    say(f"{split}: {len(rows)} records in {len(shards)} shards of {job.out}")


def shards_of(buckets: Sequence[Bucket]) -> list[list[int]]:
    """The numbers of the records of each shard; a shard has one bucket."""
    members: dict[Bucket, list[int]] = {}
    for index, bucket in enumerate(buckets):
        members.setdefault(bucket, []).append(index)
    return [same[start : start + SHARD] for same in members.values() for start in range(0, len(same), SHARD)]


def encode_records(records: Sequence[Record], encoders: Encoders) -> list[LatentRecord]:
    """Latents of [composite, layers, foreground, composite over white] and states of the caption of each record."""
    pictures = [pictures_of(record) for record in records]
    latents = encoders.latents(np.concatenate(pictures))
    states = encoders.states([record.caption for record in records])
    ends = np.cumsum([0, *map(len, pictures)])
    return [
        LatentRecord(latents=latents[a:b], states=text, size=record.size, caption=len(record.caption))
        for a, b, text, record in zip(ends, ends[1:], states, records, strict=False)
    ]


def pictures_of(record: Record) -> UInt8[np.ndarray, "p y x 4"]:
    """The images [p, y, x, 4] from which the samples of all tasks are made."""
    config, rng = TaskConfig(subject=Subject.FOREGROUND), np.random.default_rng(0)
    tasks = (Task.TEXT_TO_LAYERS, Task.TEXT_TO_RGBA, Task.TEXT_TO_RGB)
    return np.concatenate([make_sample(task, record, config, rng).pictures for task in tasks])
