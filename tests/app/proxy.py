"""A reverse proxy that shows a server at a path of its own, as nginx does by `location /path/` and `proxy_pass`."""

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from waiting import HANGS

OWN = ("host", "connection", "transfer-encoding", "content-length")
"""Headers that each connection has for itself."""


@contextmanager
def proxied(port: int, path: str, *, forwards: bool) -> Iterator[str]:
    """The address at which a server of this port is shown; `forwards` sets X-Forwarded-Host and X-Forwarded-Proto."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        """Hands a request on without the path, and its answer back as it comes."""

        protocol_version = "HTTP/1.1"

        def handed_on(self) -> None:
            """Hand on what is below the path; there is nothing else."""
            host, below = self.headers["Host"], self.path.removeprefix(path)
            if below == self.path or not below.startswith("/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN} | {"Host": host}
            headers |= {"X-Forwarded-Host": host, "X-Forwarded-Proto": "http"} if forwards else {}
            ended = suppress(OSError, http.client.HTTPException)  # of either side, such as streams at the end
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS)) as server, ended:
                server.request(self.command, below, body or None, headers)
                answer = server.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in OWN:
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                while piece := answer.read1(2**16):
                    self.wfile.write(piece)

        do_GET = do_POST = do_HEAD = handed_on  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as shown:
        shown.daemon_threads = True
        threading.Thread(target=shown.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{shown.server_port}{path}"
        shown.shutdown()
