"""Connection of the processes that run one program together, on one or several hosts.

Process 0 listens at the coordinator's address. Every process joins there by its number and index, and a start that does
not fit together ends in one error. The connections stay open: they carry the traffic of jax's own service, and tell the
other processes at once when one has ended, however it ended. JAX by itself would abort with a stack trace or wait.
"""

import dataclasses
import os
import re
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from qil_jax.accelerators import DEV, find_devices
from qil_jax.errors import SHOWN, ProblemsError, QilError, complain, cut, message
from qil_jax.links import Connection, Word, background, carry, free_address, tunnel
from qil_jax.programs import HUNG

WAIT = 60.0
"""Default number of seconds within which all processes must have joined."""
DISTRIBUTED_HELP = (
    "run together with other processes: auto, on TPU pods, SLURM and GKE, or HOST:PORT,COUNT,INDEX: the address of "
    "process 0, the number of processes, and which one this is"
)
"""The help of the option --distributed of all programs."""
WAIT_HELP = f"seconds to wait for the other processes at the start (default {WAIT:.0f})"
"""The help of the option --wait of all programs."""
MOST = 1 << 16
"""The largest number of processes: process 0 has a connection and a thread for each."""
BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as lost, such as one whose host is gone."""
GRACE = 3.0
"""Seconds for which a process may still say by itself why it ends, after another one was lost."""
REPLY = 5.0
"""Seconds within which a connected program must say what it wants."""
LATER = 600
"""Seconds of jax's own timeouts, which come after those of this module, since jax aborts at them."""
LEAVE = 60
"""Seconds in which jax lets go of the other processes, once the blocks of all have ended."""


class LaunchError(ProblemsError):
    """The processes of a program could not be connected. The message says which of them, and how to start them."""

    def __init__(self, problems: list[str]):
        super().__init__("the processes do not come together", problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One process among those that run together.

    Attributes:
      host: name or address of the host of process 0.
      port: port at which process 0 listens.
      count: number of processes.
      index: index of this process.
      devices: indices of the accelerators that belong to this process; None: all of its host.
    """

    host: str
    port: int
    count: int
    index: int
    devices: tuple[int, ...] | None = None

    @property
    def address(self) -> str:
        """The address of process 0 as HOST:PORT."""
        return f"{self.host}:{self.port}"


def parse_place(text: str) -> Place:
    """Read HOST:PORT,COUNT,INDEX.

    Raises:
      LaunchError: if `text` is something else, or the index is not below the number of processes.
    """
    address, *numbers = text.split(",")
    host, _, port = address.rpartition(":")
    if not host or len(numbers) != 2 or not all(re.fullmatch(r"\d{1,9}", n, re.ASCII) for n in (port, *numbers)):
        raise LaunchError([f"--distributed {cut(text)}: give auto, or HOST:PORT,COUNT,INDEX such as 10.0.0.1:8476,4,0"])
    count, index = map(int, numbers)
    if not 0 < int(port) < 1 << 16:
        raise LaunchError([f"--distributed {text}: the port must be from 1 to 65535"])
    if count > MOST:
        raise LaunchError([f"--distributed {text}: the number of processes must be at most {MOST}"])
    if index >= count:
        raise LaunchError([f"--distributed {text}: of {count} processes, the index must be from 0 to {count - 1}"])
    return Place(host=host.strip("[]"), port=int(port), count=count, index=index)


def cluster_place(wait: float) -> Place:
    """The place of this process by the cluster's environment: a TPU pod, GKE, SLURM, Open MPI.

    Raises:
      LaunchError: if there is no such environment, or it cannot say.
    """
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks, too

    hint = "give --distributed HOST:PORT,COUNT,INDEX"
    try:
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, max(1, int(wait))
        )
    except Exception as error:  # each environment raises errors of its own
        raise LaunchError([f"--distributed auto: the cluster's environment is not usable ({error}); {hint}"]) from error
    if address is None or count is None or index is None:
        raise LaunchError([f"--distributed auto: found no TPU pod, GKE, SLURM or Open MPI; {hint}"])
    place = parse_place(f"{address},{count},{index}")
    warn_of_idle(devices)
    return dataclasses.replace(place, devices=None if devices is None else tuple(devices))


def warn_of_idle(devices: Sequence[int] | None) -> None:
    """Say so if this process was given one GPU of a host whose others no process of this program has, as by SLURM."""
    gpus = len(list(DEV.glob("nvidia[0-9]*")))
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if devices is not None and re.match(r"1\b", tasks) and len(devices) < gpus:
        complain(
            f"warning: SLURM runs one process on each host, which uses {len(devices)} of its {gpus} GPUs: start one "
            f"for each GPU, with srun --ntasks-per-node={gpus} --gpus-per-node={gpus}"
        )


@contextmanager
def connected(where: str | None, *, wait: float = WAIT) -> Iterator[None]:
    """Connect to the other processes for the time of the block, and start the devices; none may be used before.

    If another process ends before its own block does, this process ends with the status `HUNG` and one line on standard
    error. An unforeseen exception within the block ends the process with status 1, after its traceback.

    Args:
      where: None: this process alone; "auto": by the cluster's environment; otherwise HOST:PORT,COUNT,INDEX.
      wait: seconds within which all processes must have joined.

    Raises:
      LaunchError: if `where` is none of these, or not every process has joined in time, or one by other numbers.
      QilError: if jax finds no devices.
    """
    if where is None:
        find_devices()
        yield
        return
    place = cluster_place(wait) if where == "auto" else parse_place(where)
    member = _Coordinator(place, wait) if place.index == 0 else _Follower(place, wait)
    member.join()
    try:
        find_devices()
        yield
    except (QilError, OSError, KeyboardInterrupt, SystemExit):
        member.close()
        raise
    except Exception:
        time.sleep(2 * GRACE)  # it may come from the loss of another process, which ends this one
        traceback.print_exc()
        os._exit(1)
    member.finish()


class _Member(ABC):
    """One of the connected processes: signs of life, and the end of all if one is lost."""

    def __init__(self, place: Place, wait: float):
        self.place, self.wait = place, wait
        self._changed = threading.Condition()
        self._links: dict[int, Connection] = {}
        self._done: set[int] = set()
        self._lost = self._closed = False

    @abstractmethod
    def join(self) -> None:
        """Connect to the other processes, and jax with theirs."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until the blocks of all processes have ended."""

    def close(self) -> None:
        """End the connections: for the other processes, this one is lost unless it has finished."""
        self._closed = True
        for link in self._links.values():
            link.close()

    def _tell(self, *words: Any) -> None:
        for link in self._links.values():
            link.send(*words)

    def _wait(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(ready, seconds)

    def _watch(self) -> None:
        """Begin to send and expect signs of life."""
        for index, link in self._links.items():
            link.raw.settimeout(SILENCE)
            background(self._listen, index, link)
        background(self._beat)

    def _beat(self) -> None:
        while not self._closed:
            self._tell(Word.ALIVE)
            time.sleep(BEAT)

    def _listen(self, index: int, link: Connection) -> None:
        while words := link.receive():
            match words:
                case [Word.DONE]:
                    with self._changed:
                        self._done.add(index)
                        self._changed.notify_all()
                case [Word.LOST, int(other)]:
                    self._end(other)
        if index not in self._done:
            self._end(index)

    def _end(self, lost: int) -> None:
        """End this process since another one is lost, unless it ends by itself first."""
        with self._changed:
            if self._lost or self._closed:
                return
            self._lost = True
        self._tell(Word.LOST, lost)
        time.sleep(GRACE)
        if not self._closed:
            line = f"error: process {lost} of {self.place.count} has ended, so this one ends; start all again"
            os.write(2, message(f"{line}\n").encode())
            os._exit(HUNG)

    def _start_jax(self, address: str) -> None:
        import jax

        os.environ.setdefault("no_grpc_proxy", "127.0.0.1")  # a proxy could not reach this process
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # affects CPUs only
        jax.distributed.initialize(
            address,
            self.place.count,
            self.place.index,
            local_device_ids=self.place.devices,
            cluster_detection_method="deactivate",
            coordinator_bind_address=address,
            initialization_timeout=LATER,
            heartbeat_timeout_seconds=LATER,
            shutdown_timeout_seconds=LEAVE,
        )


class _Coordinator(_Member):
    """Process 0, which listens."""

    def join(self) -> None:
        place = self.place
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            self._listener = socket.create_server(("", place.port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            raise LaunchError(
                [f"process 0 cannot listen at port {place.port} ({error.strerror}): give another one"]
            ) from error
        self._problems: list[str] = []
        self._begun = False
        self._service = free_address()
        background(self._accept)
        self._wait(lambda: bool(self._problems) or len(self._links) == place.count - 1, self.wait)
        with self._changed:
            self._begun = True
            missing = [str(index) for index in range(1, place.count) if index not in self._links]
        if missing and not self._problems:
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            self._problems = [
                f"of {place.count} processes, {', '.join(missing[:SHOWN])}{more} did not come to {place.address} "
                f"within {self.wait:g} s: start each with this address, {place.count} and its own index"
            ]
        if self._problems:
            self._tell(Word.REFUSED, self._problems)
            self._listener.close()
            self.close()
            raise LaunchError(self._problems)
        self._tell(Word.WELCOME)
        self._watch()
        self._start_jax(self._service)

    def finish(self) -> None:
        self._wait(lambda: len(self._done) == len(self._links))
        self._tell(Word.DONE)
        self._closed = True

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                background(self._answer, self._listener.accept()[0])

    def _answer(self, raw: socket.socket) -> None:
        connection = Connection(raw, REPLY)
        match connection.receive():
            case [Word.JOIN, int(count), int(index)]:
                self._admit(connection, count, index)
            case [Word.TUNNEL]:
                tunnel(raw, self._service)
            case _:
                connection.close()

    def _admit(self, connection: Connection, count: int, index: int) -> None:
        place = self.place
        with self._changed:
            if self._begun:
                problem = f"the {place.count} processes at {place.address} have begun: give other ones another port"
            elif count != place.count:
                problem = f"process {index} was started as one of {count} processes, process 0 as one of {place.count}"
            elif not 0 < index < count or index in self._links:
                problem = f"two processes were started with the index {index}: give each of {count} its own"
            else:
                self._links[index] = connection
                self._changed.notify_all()
                return
            connection.send(Word.REFUSED, [problem])
            connection.close()
            if not self._begun:
                self._problems.append(problem)
                self._changed.notify_all()


class _Follower(_Member):
    """Every other process, connected to process 0."""

    def join(self) -> None:
        place, deadline = self.place, time.monotonic() + self.wait
        link = Connection(self._connect(deadline), self.wait + REPLY)
        link.send(Word.JOIN, place.count, place.index)
        match link.receive():
            case [Word.WELCOME]:
                self._links[0] = link
            case [Word.REFUSED, list(problems)]:
                raise LaunchError(list(map(str, problems)))
            case _:
                raise LaunchError(
                    [f"what answers at {place.address} did not begin within {self.wait:g} s: is it process 0?"]
                )
        self._watch()
        self._forwarder = socket.create_server(("127.0.0.1", 0))
        background(self._forward)
        self._start_jax(f"127.0.0.1:{self._forwarder.getsockname()[1]}")

    def finish(self) -> None:
        self._tell(Word.DONE)
        self._wait(lambda: bool(self._done))
        self._closed = True

    def _connect(self, deadline: float) -> socket.socket:
        place = self.place
        while True:
            try:
                return socket.create_connection((place.host, place.port), timeout=self.wait)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        [
                            f"no process 0 answers at {place.address} within {self.wait:g} s ({error}): "
                            "start it there, or correct the address"
                        ]
                    ) from error
            time.sleep(0.2)

    def _forward(self) -> None:
        """Carry jax's connections to process 0. A lost process 0 does not close them, since jax would abort."""
        with suppress(OSError):
            while True:
                local = self._forwarder.accept()[0]
                remote = socket.create_connection((self.place.host, self.place.port), timeout=self.wait)
                Connection(remote, self.wait).send(Word.TUNNEL)
                carry(local, remote, keep=True)
