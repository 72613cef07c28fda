"""Cases in forked children of limited memory and CPU time, so that none takes the campaign with it."""

import dataclasses
import json
import math
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from qil_jax.errors import QilError
from tools.fuzz.cases import HANG, Case

SECONDS = 20
"""CPU time of a case."""
MEMORY = 2 << 30
"""Bytes of address space that cases may take beyond what a child begins with."""
Judge = Callable[[int], Case]
"""A function from a seed to its case."""


def judged(seeds: range, judge: Judge, *, seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[Case]:
    """The case of each seed. A child that dies or hangs is a failure of the seed at which it did."""
    left = list(seeds)
    while left:
        for case in _child([*left], judge, seconds, memory):
            left.remove(case.seed)
            yield case


def outcome(seed: int, kind: str, attempt: Callable[[], str]) -> Case:
    """The case of an attempt, which returns what is wrong with what it read; any error but of the package is a failure.

    Args:
      seed: the seed.
      kind: what is read.
      attempt: reads and compares.
    """
    try:
        wrong = attempt()
    except (QilError, OSError):
        return Case(seed=seed, outcome=f"{kind}: refused")
    except Exception:
        last = traceback.format_exc().strip().splitlines()
        return Case(seed=seed, outcome=f"{kind}: traceback", failure=f"{kind}: {last[-1][:300]} ({last[-3].strip()})")
    return Case(seed=seed, outcome=f"{kind}: read", failure=f"{kind}: {wrong}" if wrong else "")


def _child(seeds: list[int], judge: Judge, seconds: int, memory: int) -> Iterator[Case]:
    """The cases of one child, up to the one at which it dies."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            _work(seeds, judge, writing, seconds, memory)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    done = 0
    with os.fdopen(reading, "rb") as stream:
        while done < len(seeds) and select.select([stream], [], [], HANG)[0] and (line := stream.readline()):
            done += 1
            yield Case(**json.loads(line))
    os.kill(child, signal.SIGKILL)  # it has ended, or hangs
    _, status = os.waitpid(child, 0)
    if done < len(seeds):
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        how = f"took more than {seconds} s" if died == signal.SIGXCPU else f"ended its process (signal {died})"
        yield Case(seed=seeds[done], outcome="killed", failure=how)


def _work(seeds: list[int], judge: Judge, writing: int, seconds: int, memory: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _limit(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE") + memory)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)
        line = json.dumps(dataclasses.asdict(judge(seed)))
        os.write(writing, f"{line}\n".encode())


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
