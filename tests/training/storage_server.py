"""An emulated Google Cloud Storage that also keeps the promises of object generations, which tensorstore relies on.

gcp-storage-emulator neither says an object's generation with its content, nor minds preconditions on generations.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from threading import Lock
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o")


class Handler(emulator.RequestHandler):
    """The emulator's requests, one after the other, with generations."""

    one_at_a_time = Lock()

    def _generation(self) -> str | None:
        """The generation of the object that the request names, 0 if there is no such object; None if it names none."""
        address = urlsplit(self.path)
        found = OBJECT.fullmatch(address.path) or UPLOAD.fullmatch(address.path)
        name = parse_qs(address.query).get("name", [""])[0] if found and "name" not in found.groupdict() else None
        if found is None or name == "":
            return None
        try:
            return self.storage.get_file_obj(found["bucket"], unquote(found["name"]) if name is None else name)[
                "generation"
            ]
        except NotFound:
            return "0"

    def _refused(self) -> bool:
        """Answer a request whose precondition does not hold."""
        wanted, now = parse_qs(urlsplit(self.path).query), self._generation()
        if now is None:
            return False
        if wanted.get("ifGenerationMatch", [now]) != [now]:
            status = HTTPStatus.PRECONDITION_FAILED
        elif now != "0" and wanted.get("ifGenerationNotMatch") == [now]:
            status = HTTPStatus.NOT_MODIFIED
        else:
            return False
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def end_headers(self) -> None:
        if self._generation() is not None:
            self.send_header("x-goog-generation", self._generation() or "0")
        super().end_headers()

    def do_GET(self) -> None:  # noqa: N802
        with self.one_at_a_time:
            if not self._refused():
                super().do_GET()

    def do_POST(self) -> None:  # noqa: N802
        with self.one_at_a_time:
            if not self._refused():
                super().do_POST()

    def do_DELETE(self) -> None:  # noqa: N802
        with self.one_at_a_time:
            if not self._refused():
                super().do_DELETE()


class _Server(ThreadingHTTPServer):
    """A server on which a client that keeps silent holds up no other."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that are killed, or change their mind, break their connections."""


@contextmanager
def storage_server(bucket: str) -> Iterator[str]:
    """The address of a server that is empty but for a bucket, which is empty too."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with (
        mock.patch.object(emulator, "RequestHandler", Handler),
        mock.patch.object(emulator.server, "HTTPServer", _Server),
    ):
        server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
        server.start()
        try:
            yield f"http://127.0.0.1:{server._api._httpd.server_port}"
        finally:
            server.stop()
