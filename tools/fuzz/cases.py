"""Shared functions of the campaigns: cases, mutated bytes, supervised programs, and hashes of files."""

import dataclasses
import hashlib
import random
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANG = 4 * 3600.0
"""Seconds after which a program counts as hanging, far more than any batch of cases takes on a slow machine."""
BYSTANDERS = {"notes.txt": b"not ours\n", "other/picture.png": bytes(range(256)), ".hidden": b""}
"""Files that are in the folder of an output before the program starts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """The result of one seed.

    Attributes:
      seed: seed from which the input was generated.
      outcome: class of the outcome in one or two words.
      failure: description of the failure; empty if there was none.
    """

    seed: int
    outcome: str
    failure: str = ""


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Mutated data: bits flipped, a length inflated, a range removed, repeated or zeroed, or the end cut off."""
    mutant = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(mutant))
        match rng.randrange(6):
            case 0:
                mutant[at] ^= 1 << rng.randrange(8)
            case 1:
                mutant[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 28]))
            case 2:
                del mutant[at : at + rng.randrange(1, 64)]
            case 3:
                mutant[at:at] = mutant[at : at + rng.randrange(1, 64)]
            case 4:
                mutant[at : at + 16] = bytes(len(mutant[at : at + 16]))
            case _:
                del mutant[max(at, 30) :]
        if not mutant:
            break
    return bytes(mutant)


def call_of(words: list[str]) -> list[str]:
    """The call of a verb of `qil`, or of a program of the repository by its path, with its arguments."""
    begin = [str(ROOT / words[0])] if words[0].endswith(".py") else ["-m", "qil_jax", words[0]]
    return [sys.executable, *begin, *words[1:]]


def watched(words: list[str]) -> tuple[int, str, str]:
    """Run what `call_of` calls: exit status, what it printed, and what was wrong.

    A traceback, termination by a signal and a timeout count as wrong.
    """
    try:
        done = subprocess.run(
            call_of(words), capture_output=True, text=True, errors="replace", timeout=HANG, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, "", f"{words[0]} did not end within {HANG:.0f} s"
    printed = done.stdout + done.stderr
    if "Traceback (most recent call last)" in printed:
        return done.returncode, printed, f"{words[0]} ended in a traceback: {printed.strip().splitlines()[-1]}"
    wrong = f"{words[0]} ended by signal {-done.returncode}" if done.returncode < 0 else ""
    return done.returncode, printed, wrong


def write_bystanders(folder: Path) -> None:
    """Write the files of BYSTANDERS into a folder."""
    for name, data in BYSTANDERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def lost(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Description of the files that are missing or changed; empty if none is."""
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    return f"changed or gone: {', '.join(changed)}" if changed else ""
