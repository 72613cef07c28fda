"""What a sandbox survives, in a module of its own: its child imports it for each call."""

import os
import time

from qil_jax.documents.reasons import Dropped, Reason


def die(code: int) -> None:
    os._exit(code)


def drop(why: str) -> None:
    raise Dropped(Reason.TOO_FLAT, why)


def spin(_: None) -> None:
    while True:
        pass


def work_and_wait(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    time.sleep(1.5)
