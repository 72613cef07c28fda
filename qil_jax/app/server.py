"""The app as a server: a folder of its own, the page, the door before it, and an end that leaves nothing behind."""

import errno
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qil_jax.errors import QilError, say

if TYPE_CHECKING:
    import gradio as gr

    from qil_jax.app.page import Served

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


def require_address(host: str, port: int) -> None:
    """Check that this machine can serve at an address.

    Raises:
      QilError: if it cannot; the message names the option to change.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            raise QilError(f"--port {port}: is in use on {host}; choose another, or end what serves there") from error
        if number == errno.EACCES:
            raise QilError(f"--port {port}: is not allowed to this user; choose one above 1023") from error
        raise QilError(
            f"--host {host}: is no address of this machine ({error}); 127.0.0.1 serves this machine alone, 0.0.0.0 "
            "whoever reaches it"
        ) from error


def launched(served: "Served", *, host: str, port: int, root_path: str | None = None) -> "gr.Blocks":
    """A page that is served by a thread of its own, with the door before it.

    Raises:
      OSError: if the port is taken.
    """
    from starlette.middleware import Middleware

    from qil_jax.app.calls import Calls
    from qil_jax.app.connections import bound
    from qil_jax.app.guard import Guard
    from qil_jax.app.look import CSS, theme
    from qil_jax.app.page import build, checked

    page = build(served)
    page.queue(max_size=served.limits.queue, default_concurrency_limit=1, api_open=False)
    calls = Calls(page, served.streams)
    served.storage.used = calls.uploads
    door = Middleware(
        Guard, limits=served.limits, storage=served.storage, calls=calls, check=lambda values: checked(served, values)
    )
    page.launch(
        server_name=host,
        server_port=port,
        root_path=root_path,
        max_file_size=served.limits.upload_bytes,
        allowed_paths=[],
        app_kwargs={"middleware": [door]},
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
    bound(page.server)
    served.storage.keep()
    return page


def serve(served: "Served", *, host: str, port: int, root_path: str | None = None) -> None:
    """Serve until the program is interrupted.

    Args:
      served: what is served.
      host: address to serve on.
      port: port to serve on.
      root_path: path or address at which a proxy shows the app; None: as its requests say.

    Raises:
      OSError: if the port is taken.
    """
    from qil_jax.app.calls import Calls

    page = launched(served, host=host, port=port, root_path=root_path)
    calls = Calls(page, served.streams)
    say(f"serving {page.local_url}")
    while True:
        time.sleep(min(SWEEP, served.storage.seconds))
        served.storage.sweep()
        calls.forget_uploads()
