"""The app as a server: a folder of its own, the page, the door before it, and an end that leaves nothing behind."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qil_jax.app.limits import Limits

if TYPE_CHECKING:
    import gradio as gr

SWEEP = 30.0
"""Seconds between two looks for uploads and results that are old."""
SWITCHES = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False"}
"""What gradio reads from the environment when it is imported: nothing is reported to anybody."""


@contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder for uploads and results, in which gradio keeps its files too; it is removed at the end.

    gradio reads the environment when it is imported, so this comes first.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qil-app-", dir=parent, ignore_cleanup_errors=True) as folder:
        os.environ |= {**SWITCHES, "GRADIO_TEMP_DIR": folder, "GRADIO_EXAMPLES_CACHE": f"{folder}/examples"}
        yield Path(folder).resolve()


def sweep(folder: Path, keep: set[str], seconds: float) -> None:
    """Remove what is older, but for entries of these names."""
    for entry in folder.iterdir():
        try:
            old = time.time() - entry.stat().st_mtime > seconds
        except FileNotFoundError:
            continue
        if old and entry.name not in keep:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def serve(page: "gr.Blocks", folder: Path, limits: Limits, *, host: str, port: int) -> None:
    """Serve a page until the program is interrupted.

    Raises:
      OSError: if the port is taken.
    """
    from starlette.middleware import Middleware

    from qil_jax.app.guard import Guard
    from qil_jax.app.look import CSS, theme

    page.queue(max_size=limits.queue, default_concurrency_limit=1, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=limits.upload_bytes,
        allowed_paths=[],
        app_kwargs={"middleware": [Middleware(Guard, folder=folder, limits=limits)]},
        theme=theme(),
        css=CSS,
        footer_links=["api"],
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
    )
    print(f"serving {page.local_url}", flush=True)
    keep, seconds = {entry.name for entry in folder.iterdir()}, 60.0 * limits.minutes
    while True:
        time.sleep(min(SWEEP, seconds))
        sweep(folder, keep, seconds)
