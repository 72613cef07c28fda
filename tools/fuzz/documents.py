"""The campaign of broken Photoshop documents: folders of them, each built into a dataset by build_dataset.py."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tools.fuzz.cases import ROOT, Case, hashes, lost, mutate, watched, write_bystanders

CARRIED = ROOT / "tests" / "documents" / "files"
TOGETHER = 100
"""Number of documents of one build, in which a broken document must not affect the rows of the others."""
LIMITS = ("--seconds", "20", "--memory-gib", "1")
SIDECAR = {"source": "a designer", "licence": "CC0-1.0", "category": "poster"}
ODD_FACTS = ("", "[]", "null", '{"licence": 3}', '{"source": "\\ud800"}', "[" * 100_000, '{"category": ["a"]}')


def documents(seeds: range, folder: Path) -> Iterator[Case]:
    """One case per seed, a mutated document, sometimes with mutated sidecars."""
    originals = _originals(folder / "scenes")
    for start in range(seeds.start, seeds.stop, TOGETHER):
        batch = range(start, min(start + TOGETHER, seeds.stop))
        place = folder / f"from {start}"
        yield from _built(batch, originals, place)
        shutil.rmtree(place)


def _originals(folder: Path) -> list[bytes]:
    """Small real documents, and layered scenes as Photoshop documents."""
    make = ["make-scenes", "--count", "6", "--side", "64", "--format", "psd", "--out", str(folder)]
    code, printed, _ = watched(make)
    if code:
        raise RuntimeError(f"no scenes to break: {printed}")
    return [file.read_bytes() for file in sorted([*CARRIED.glob("*.ps[db]"), *folder.glob("*.psd")])]


def _built(seeds: range, originals: list[bytes], place: Path) -> Iterator[Case]:
    source, out = place / "documents", place / "out"
    source.mkdir(parents=True)
    for seed in seeds:
        for suffix, data in _inputs(random.Random(seed), originals).items():
            (source / f"{seed:06d}{suffix}").write_bytes(data)
    write_bystanders(out)
    inputs, others = hashes(source), hashes(out)
    code, printed, failure = watched(["build-dataset", str(source), "--out", str(out), *LIMITS])
    failures = [failure, lost(inputs, hashes(source)), lost(others, hashes(out))]
    report = out / "report.json"
    if not report.is_file():
        failures.append(f"no report: {printed.strip()[-300:]}")
    rows = {row["document"]: row for row in json.loads(report.read_text())["rows"]} if report.is_file() else {}
    kept = sum(row["reason"] is None for row in rows.values())
    if code != (0 if kept else 1):
        failures.append(f"exit status {code} with {kept} documents kept")
    if kept and not failure:
        failures.append(_unreadable(out, kept))
    whole = "; ".join(filter(None, failures))
    for seed in seeds:
        row = rows.get(f"{seed:06d}.psd")
        outcome = "no row" if row is None else row["reason"] or "kept"
        wrong = "no row in the report" if row is None else "dropped without a reason in words"
        known = row is not None and (row["reason"] is None or row["detail"])
        first = whole if seed == seeds.start else ""
        yield Case(seed=seed, outcome=outcome, failure=first or ("" if known else wrong))


def _inputs(rng: random.Random, originals: list[bytes]) -> dict[str, bytes]:
    """The document and its sidecars, by suffix. One in ten documents is intact, so that some must be kept."""
    original = rng.choice(originals)
    files = {".psd": original if rng.random() < 0.1 else mutate(original, rng)}
    sidecar = json.dumps(SIDECAR).encode()
    match rng.randrange(5):
        case 0:
            files[".json"] = sidecar
        case 1:
            files[".json"] = mutate(sidecar, rng)
        case 2:
            files[".json"] = rng.choice(ODD_FACTS).encode()
    match rng.randrange(4):
        case 0:
            files[".txt"] = "a poster, \u00e4\n".encode()
        case 1:
            files[".txt"] = rng.randbytes(rng.randrange(40))
    return files


def _unreadable(out: Path, kept: int) -> str:
    """Description of the dataset's faults; empty if all records of the kept documents can be read."""
    from qil_jax.records.sources import open_source

    (info,) = out.glob("layered_dataset/*/dataset_info.json")
    sources = [open_source(out, split["name"]) for split in json.loads(info.read_text())["splits"]]
    try:
        read = sum(len(source[index].layers) > 0 for source in sources for index in range(len(source)))
    except Exception as error:
        return f"the dataset cannot be read: {type(error).__name__}: {error}"
    return "" if read == kept else f"the dataset has {read} records of {kept} kept documents"
