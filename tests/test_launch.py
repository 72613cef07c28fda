"""Processes that start together: a start that does not fit ends in one error, and a lost process ends the others."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANGS, free_port

from qil_jax import launch
from qil_jax.launch import LaunchError, cluster_place, parse_place

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import os, sys, time
from qil_jax import launch
from qil_jax.errors import QilError
from qil_jax.launch import connected
from qil_jax.programs import leave

launch.SILENCE = launch.LATER = launch.LEAVE = 86400  # that a process is lost is told by its end alone
FIRST

def work(ending):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    every = multihost_utils.process_allgather(np.int32(jax.process_index()))
    print("together", every.tolist(), jax.device_count(), flush=True)
    if ending == f"late {jax.process_index()}":
        sys.stdin.readline()
    if ending == f"refuse {jax.process_index()}":
        raise QilError("the disk is full")
    if ending == f"fault {jax.process_index()}":
        raise RuntimeError("a programming error")
    if ending.startswith("compute"):
        while True:
            multihost_utils.process_allgather(np.int32(0))
    if not ending.startswith("late"):
        time.sleep(600 * ("sleep" in ending or "refuse" in ending or "fault" in ending))
    print("finishing", flush=True)

def main(where, wait, ending):
    try:
        with connected(where, wait=float(wait)):
            work(ending)
    except QilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

leave(main(*sys.argv[1:]))
"""


class Started:
    """Processes that run PROGRAM, after lines of Python that may take the place of the clock."""

    def __init__(
        self,
        *places: str,
        wait: float = HANGS,
        ending: str = "",
        first: str = "",
        environments: list[dict] | None = None,
    ):
        environments = environments or [{}] * len(places)
        self.all = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM.replace("FIRST", first), place, str(wait), ending],
                env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | more,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for place, more in zip(places, environments, strict=True)
        ]

    def together(self) -> None:
        """Wait until all have computed together."""
        for index in range(len(self.all)):
            self.says(index, "together")

    def says(self, index: int, word: str) -> None:
        """Wait for a line of a process that begins with a word."""
        process = self.all[index]
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith(word):
            assert line, process.communicate()

    def ended(self) -> list[tuple[int, str]]:
        """Exit status and standard error of each, which must end without a trace of C++; those that are late go on."""
        found = []
        for process in self.all:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for process in self.all:
            _, err = process.communicate(timeout=HANGS)
            assert "stack trace" not in err and "terminate called" not in err
            found.append((process.returncode, err))
        return found


def places(*texts: str) -> list[str]:
    """COUNT,INDEX of each process, completed by one free port."""
    port = free_port()
    return [f"127.0.0.1:{port},{text}" for text in texts]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1:8476", "give auto, or HOST:PORT,COUNT,INDEX"),
        ("10.0.0.1,2,0", "give auto, or HOST:PORT,COUNT,INDEX"),
        (":8476,2,0", "give auto, or HOST:PORT,COUNT,INDEX"),
        ("a:8476,2,x", "give auto, or HOST:PORT,COUNT,INDEX"),
        ("a:8476,2,-1", "give auto, or HOST:PORT,COUNT,INDEX"),
        ("a:99999,2,1", "the port must be from 1 to 65535"),
        ("a:8476,2,2", "of 2 processes, the index must be from 0 to 1"),
        ("a:8476,0,0", "the index must be from 0"),
        ("a:8476,400000000,0", "the number of processes must be at most 65536"),
        (f"a:8476,2,{'9' * 5000}", "99999\\.\\.\\.: give auto, or HOST:PORT,COUNT,INDEX"),
    ],
)
def test_places_are_refused(text, message):
    with pytest.raises(LaunchError, match=message):
        parse_place(text)


@pytest.mark.parametrize(("tasks", "gpus", "warns"), [("1(x2)", 8, True), ("8(x2)", 8, False), ("1", 1, False)])
def test_gpus_that_slurm_leaves_idle_are_named(tasks, gpus, warns, tmp_path, monkeypatch, capsys):
    for name in ("nvidiactl", *(f"nvidia{i}" for i in range(gpus))):
        (tmp_path / name).touch()
    monkeypatch.setattr(launch, "DEV", tmp_path)
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[01-02]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    job |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": tasks}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    place = cluster_place(1.0)
    assert (place.host, place.count, place.index, place.devices) == ("node01", 2, 1, (0,))
    said = capsys.readouterr().err
    assert said == (
        "warning: SLURM runs one process on each host, which uses 1 of its 8 GPUs: start one for each GPU, with srun "
        "--ntasks-per-node=8 --gpus-per-node=8\n"
        if warns
        else ""
    )


def test_an_address_of_ip_version_6():
    place = parse_place("[fd00::1]:8476,4,3")
    assert (place.host, place.port, place.count, place.index) == ("fd00::1", 8476, 4, 3)


def test_processes_start_and_end_together():
    started = Started(*places("3,0", "3,2", "3,1"), ending="late 1")
    started.together()
    for index in range(2):
        started.says(index, "finishing")
    assert [process.poll() for process in started.all] == [None] * 3
    assert [status for status, _ in started.ended()] == [0, 0, 0]


def test_slurm_says_who_is_who():
    """By the variables that srun sets, the port follows from the job's number."""
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    job |= {"SLURM_STEP_NUM_NODES": "1"}
    environments = [job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    started = Started("auto", "auto", environments=environments)
    started.together()
    assert [status for status, _ in started.ended()] == [0, 0]


IN_TIME = """
plain = launch._Member._wait
launch._Member._wait = lambda self, ready, seconds=None: plain(self, lambda: ready() or bool(self._links), seconds)
"""
"""The time to wait is over when the first process has come."""
STARTS = {
    "another count": (("2,0", "3,1"), "process 1 was started as one of 3 processes, process 0 as one of 2", {}),
    "the same index": (("3,0", "3,1", "3,1"), "two processes were started with the index 1", {}),
    "a missing process": (("3,0", "3,2"), "of 3 processes, 1 did not come to 127.0.0.1:", {"first": IN_TIME}),
    "no coordinator": (("2,1",), "no process 0 answers at 127.0.0.1:", {"wait": 0.5}),
    "a wrong index": (("2,2",), "of 2 processes, the index must be from 0 to 1", {}),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_start_that_does_not_fit_ends_in_one_error(case):
    texts, message, how = STARTS[case]
    for status, err in Started(*places(*texts), **how).ended():
        assert status == 2 and err.count("error:") == 1 and message in err


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ((status, err),) = Started(f"127.0.0.1:{taken.getsockname()[1]},2,0").ended()
        assert status == 2 and "give another one" in err
        ((status, err),) = Started(f"127.0.0.1:{taken.getsockname()[1]},2,1", wait=1, first="launch.REPLY = 0").ended()
        assert status == 2 and "did not begin within 1 s: is it process 0?" in err


def test_no_cluster():
    ((status, err),) = Started("auto").ended()
    assert status == 2 and "found no TPU pod, GKE, SLURM or Open MPI" in err


def test_a_late_process_does_not_disturb_the_others():
    wheres = places("2,0", "2,1", "2,1")
    started = Started(*wheres[:2], ending="late 1")
    started.together()
    ((status, err),) = Started(wheres[2]).ended()
    assert status == 2 and "have begun: give other ones another port" in err
    assert [status for status, _ in started.ended()] == [0, 0]


@pytest.mark.parametrize("ending", ["sleep", "compute"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(ending, victim):
    started = Started(*places("3,0", "3,1", "3,2"), ending=ending)
    started.together()
    os.kill(started.all[victim].pid, signal.SIGKILL)
    for index, (status, err) in enumerate(started.ended()):
        if index != victim:
            assert status == 75
            assert err.splitlines()[-1] == f"error: process {victim} of 3 has ended, so this one ends; start all again"


@pytest.mark.parametrize(("ending", "status", "message"), [("refuse 1", 2, "error: the disk"), ("fault 1", 1, "a pro")])
def test_an_error_of_one_process_ends_all(ending, status, message):
    started = Started(*places("2,0", "2,1"), ending=ending)
    (other, said), (failed, err) = started.ended()
    assert (failed, other) == (status, 75) and message in err
    assert "error: process 1 of 2 has ended" in said


@pytest.mark.parametrize(
    "call",
    [
        ["train.py", str(ROOT / "configs" / "demo" / "rgba_vae.py"), "--out", "run"],
        ["infer.py", "a.png", "--out", "out"],
    ],
)
def test_programs_say_that_nobody_answers(call, tmp_path):
    words = [*call[1:], "--distributed", f"127.0.0.1:{free_port()},2,1", "--wait", "0.5"]
    done = subprocess.run([sys.executable, ROOT / call[0], *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "no process 0 answers at 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr
