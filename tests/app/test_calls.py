"""What is kept of uploads within gradio."""

import asyncio
from types import SimpleNamespace

from gradio.routes import file_upload_statuses

from qil_jax.app import calls
from qil_jax.app.calls import Calls


class CallsOfNoPage(Calls):
    """Calls of a page that has nothing but the paths of uploads."""

    def __init__(self):
        self.page = SimpleNamespace(upload_file_set={"x"})


def test_nothing_is_kept_of_uploads_that_nobody_watches(monkeypatch):
    """Their paths, and the progress of those that ended, once there are many."""
    monkeypatch.setattr(calls, "MOST_WATCHED", 3)
    kept = CallsOfNoPage()

    async def watch() -> None:
        watched = asyncio.create_task(file_upload_statuses.is_tracked("watched"))
        await asyncio.sleep(0)
        file_upload_statuses.append("running", "x.png", b"x")
        for number in range(2):
            file_upload_statuses.set_done(f"{number}")
            file_upload_statuses._signals[f"asked for {number}"]
        kept.forget_uploads()
        assert set(file_upload_statuses._statuses) == {"running", "0", "1"}
        file_upload_statuses.set_done("2")
        kept.forget_uploads()
        assert set(file_upload_statuses._statuses) == {"running"} and kept.page.upload_file_set == set()
        assert set(file_upload_statuses._signals) == {"running", "watched"}
        file_upload_statuses.set_done("watched")
        assert await watched

    asyncio.run(watch())
    file_upload_statuses._statuses.clear()
    file_upload_statuses._signals.clear()
