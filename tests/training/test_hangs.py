"""A run that hangs ends by itself, says what it waited for, and goes on by the same command."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import GO_ON, ROOT, QuickRuns, World, assert_same_bits, config_of, environment, finish, saved, two_of
from waiting import HANGS

from qil_jax.cli.train_arguments import parse_arguments
from qil_jax.training import watchdog
from qil_jax.training.config_file import load_experiment
from qil_jax.training.disk import newest_step
from qil_jax.training.run_folder import check_folder
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.watchdog import Watchdog


class Ended:
    """What a watchdog of this process calls instead of ending it."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.called = threading.Event()

    def __call__(self, status: int) -> None:
        self.status = status
        self.called.set()


class Clock:
    """Stands for the module `time` in the watchdog: time passes when a test says so."""

    def __init__(self) -> None:
        self.seconds, self._looks = 0.0, 0
        self._looked = threading.Condition()

    def monotonic(self) -> float:
        with self._looked:
            self._looks += threading.current_thread().name == "watchdog"
            self._looked.notify_all()
            return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def passes(self, seconds: float) -> None:
        """Time passes, and the watchdog sees it; once it looks again, it has judged by the first look."""
        with self._looked:
            self.seconds += seconds
            seen = self._looks + 2
            assert self._looked.wait_for(lambda: self._looks >= seen, HANGS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The watchdog's."""
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def held(watch: Watchdog) -> None:
    """Let a watchdog that acted go."""
    watch._hung.clear()


def a_function_that_waits(clock: Clock, called: threading.Event) -> None:
    clock.seconds += 7
    assert called.wait(HANGS)


def test_a_hang_is_reported_with_its_stack(tmp_path, capfd, clock):
    ended = Ended()
    with Watchdog(0.1, tmp_path / "run", last_words=lambda: "ended: nothing is saved", end=ended) as watch:
        watch.now("step 17 on the devices")
        a_function_that_waits(clock, ended.called)
        held(watch)
    assert ended.status == 75
    said, file = capfd.readouterr().err, (tmp_path / "run" / "hang" / "process_0.txt").read_text()
    assert re.match(r"the process has waited 7 s for: step 17 on the devices\n", said)
    assert said.endswith("ended: nothing is saved\n")
    for text in (said, file):
        assert "in a_function_that_waits" in text
    assert re.match(r"the process has waited 7 s for: step 17 on the devices \(\d{4}-.* UTC\)\n", file)


def test_what_goes_on_is_no_hang(tmp_path, clock):
    ended = Ended()
    with Watchdog(0.1, tmp_path, end=ended) as watch:
        *_, thread = (thread for thread in threading.enumerate() if thread.name == "watchdog")
        for step in range(10):
            watch.now(f"waiting for batch {step} of the loader")
            clock.passes(0.09)
            with watch.doing(f"step {step} on the devices"):
                clock.passes(0.09)
    thread.join(HANGS)
    assert not thread.is_alive(), "the end of the run is no end of the watch"
    assert not ended.called.is_set() and not (tmp_path / "hang").exists()


def test_the_activity_around_a_block_begins_anew(tmp_path, capfd, clock):
    ended = Ended()
    with Watchdog(0.1, tmp_path, end=ended) as watch:
        watch.now("training")
        clock.passes(0.09)
        with watch.doing("saving"):
            clock.passes(0.09)
        clock.passes(0.09)
        assert not ended.called.is_set()
        clock.seconds += 7
        assert ended.called.wait(HANGS)
        held(watch)
    assert "the process has waited 7 s for: training\n" in capfd.readouterr().err


def test_no_timeout_is_no_watch(tmp_path):
    before = set(threading.enumerate())
    with Watchdog(0.0, tmp_path):
        assert "watchdog" not in [thread.name for thread in set(threading.enumerate()) - before]


def test_hangs_are_kept_and_only_those_of_this_attempt_are_said(tmp_path, capfd, clock):
    folder = tmp_path / "hang"
    folder.mkdir()
    (folder / "process_0.txt").write_text("process 0 of 3 has waited 5 s for: an earlier step (2020)\nstack\n")
    (folder / "process_1.txt").write_text("process 1 of 3 has waited 5 s for: an earlier attempt (2020)\nstack\n")
    ended = Ended()
    with Watchdog(0.1, tmp_path, end=ended) as watch:
        watch.known_as(0, 3)
        watch.now("step 2 on the devices")
        (folder / "process_2.txt").write_text("process 2 of 3 has waited 7 s for: batch 3 (2025)\nstack\n")
        clock.seconds += 1
        assert ended.called.wait(HANGS)
        held(watch)
    said = capfd.readouterr().err
    assert said.startswith("process 0 of 3 has waited ") and "process 2 of 3 has waited 7 s for: batch 3" in said
    assert "an earlier attempt" not in said
    mine = (folder / "process_0.txt").read_text()
    assert mine.startswith("process 0 of 3 has waited 5 s for: an earlier step") and "step 2 on the devices" in mine


def test_a_folder_that_blocks_does_not_keep_the_process(tmp_path, monkeypatch):
    """The run's disk may be what hangs. By the real clock."""
    blocked = threading.Event()
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: blocked.wait(HANGS))
    monkeypatch.setattr(watchdog, "LAST", 0.0)
    ended, since = Ended(), time.monotonic()
    with Watchdog(0.1, tmp_path / "run", end=ended) as watch:
        assert ended.called.wait(HANGS)
        held(watch)
    assert ended.status == 75 and time.monotonic() - since > 0.1 and not blocked.is_set()
    blocked.set()


def test_a_folder_with_nothing_but_hangs_is_free(tmp_path):
    (tmp_path / "hang").mkdir()
    check_folder(tmp_path, load_experiment(config_of(Stage.RGBA_VAE)))


@pytest.mark.parametrize("text", ["-1", "soon", "nan", "inf"])
def test_a_timeout_that_is_none(text, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["config.py", f"--hang-timeout={text}"])
    assert ended.value.code == 2 and f"{text} is no number of seconds" in capsys.readouterr().err


@pytest.mark.full
def test_no_false_alarm_in_a_run_longer_than_its_timeout(quick: QuickRuns, tmp_path, clock):
    quick.slowly = lambda: clock.passes(0.09)
    assert quick.main(tmp_path / "run", {"steps": 16, "checkpoints.every": 4}, "--hang-timeout", "0.1") == 0
    assert clock.seconds > 10 * 0.1
    assert not (tmp_path / "run" / "hang").exists()


BLOCKED = """
import hashlib, threading, time
from pathlib import Path
from types import SimpleNamespace
import jax
from qil_jax.loader.loader import Loader
from qil_jax.training import watchdog
from qil_jax.training.config_file import load_experiment
from qil_jax.training.disk import newest_step

marker = Path({marker!r})
hangs = False

def blocked_in_c():
    global hangs
    hangs = True
    while newest_step(Path({run!r})) != 4:
        time.sleep(0.01)
    marker.write_text("blocked")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def monotonic():
    over = hangs and threading.current_thread().name == "watchdog" and marker.read_text()
    return {timeout} + 1.0 if over else 0.0

def config():
    blocks, plain, now = jax.process_index() == {index}, Loader.__next__, watchdog.Watchdog.now

    def after_four(self):
        if self.state()["step"] == 4 and blocks and marker.exists():
            blocked_in_c()
        return plain(self)

    def noted(self, text):
        global hangs
        now(self, text)
        hangs = "step 5 " in text and marker.exists()

    Loader.__next__ = after_four
    if not blocks:
        watchdog.Watchdog.now = noted
    watchdog.time = SimpleNamespace(monotonic=monotonic, sleep=time.sleep)
    return load_experiment(Path({config!r}), {settings!r})
"""
"""No time passes until step 4 is saved and a process blocked: then the timeout is over, here and where step 5 waits."""
TIMEOUT = ["--hang-timeout", str(HANGS)]


def blocked(folder: Path, settings: list[str], index: int) -> tuple[Path, Path]:
    """A config whose run blocks in a process before the fifth step, and the file whose presence makes it do so."""
    marker, file = folder / "marker", folder / "blocked.py"
    places = {"marker": str(marker), "run": str(folder / "run"), "config": str(config_of(Stage.TEXT_TO_RGBA))}
    file.write_text(BLOCKED.format(index=index, settings=settings, timeout=HANGS, **places))
    marker.touch()
    return file, marker


@pytest.mark.full
def test_a_blocked_run_ends_and_goes_on(world: World, tmp_path):
    """The main thread is in compiled code, where Python hears nothing."""
    settings = world.settings(Stage.TEXT_TO_RGBA, {"trainable": "image_out"})
    file, marker = blocked(tmp_path, settings, index=0)
    run, uncut, env = tmp_path / "run", tmp_path / "uncut", environment(world.folder)
    marker.unlink()
    program = [sys.executable, str(ROOT / "train.py"), str(file)]
    finish([*program, "--out", str(uncut)], env)
    marker.touch()
    call = [*program, "--out", str(run), *TIMEOUT]
    ended = subprocess.run(call, env=env, capture_output=True, text=True, timeout=HANGS, check=False)
    assert ended.returncode == 75, ended.stdout + ended.stderr
    said = f"the process has waited {HANGS + 1} s for: waiting for batch 5 of the loader"
    assert said in ended.stderr.splitlines()
    assert "in blocked_in_c" in ended.stderr
    assert "in blocked_in_c" in (run / "hang" / "process_0.txt").read_text()
    assert ended.stderr.splitlines()[-1].startswith(f"ended: step 4 is saved; {GO_ON} ")
    assert newest_step(run) == 4
    assert_same_bits(saved(run, 4), saved(uncut, 4))
    marker.unlink()
    finish(call, env)
    assert_same_bits(saved(run, 6), saved(uncut, 6))
    assert (run / "checkpoint" / "training.json").is_file()


@pytest.mark.full
def test_two_processes_say_what_both_wait_for(world: World, tmp_path):
    settings = world.settings(Stage.TEXT_TO_RGBA, {"trainable": "image_out", "mesh.fsdp": 2})
    file, marker = blocked(tmp_path, settings, index=1)
    program, env = (
        [sys.executable, str(ROOT / "train.py"), str(file), "--out", str(tmp_path / "run")],
        environment(world.folder),
    )
    calls = two_of([*program, *TIMEOUT])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(call, env=env, **pipes) for call in calls]
    said = [child.communicate(timeout=HANGS)[1] for child in children]
    assert [child.returncode for child in children] == [75, 75], "\n".join(said)
    waited = [re.search(rf"^process {i} of 2 has waited {HANGS + 1} s for: (.*)$", said[i], re.M) for i in range(2)]
    assert waited[0] and waited[1]
    assert waited[1][1] == "waiting for batch 5 of the loader" and "in blocked_in_c" in said[1]
    assert waited[0][1] != waited[1][1] and "in blocked_in_c" not in said[0]
    for i in range(2):
        assert waited[1 - i][0] in said[i], "each process says what the other waits for"
        assert (tmp_path / "run" / "hang" / f"process_{i}.txt").is_file()
    marker.unlink()
    outs = [subprocess.Popen(c, env=env, **pipes) for c in two_of(program)]
    assert [(child.communicate(timeout=HANGS), child.returncode)[1] for child in outs] == [0, 0]
