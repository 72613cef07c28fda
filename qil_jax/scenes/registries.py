"""Archives of package registries, fetched by the registries' own clients and checked.

The clients know the user's mirrors, proxies and credentials, so no address of a registry is written here.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from enum import StrEnum
from pathlib import Path

from qil_jax.errors import QilError

SECONDS = 1800.0
"""Time limit of a client."""
SHOWN = 20
"""Maximum number of lines that a message quotes of what a client says."""


class FetchError(QilError):
    """A package cannot be fetched. The message names the package, the reason and the fix."""


class Client(StrEnum):
    """The program that fetches an archive."""

    NPM = "npm"
    PIP = "pip"
    APT = "apt-get"


FIXES = {
    Client.NPM: "it comes with Node.js",
    Client.PIP: f"{Path(sys.executable).name} -m ensurepip installs it",
    Client.APT: "Debian and the systems made from it have it",
}
"""What helps where a client is missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive file of a package registry.

    Attributes:
      client: program that fetches it.
      name: name of the package in the registry.
      version: version of the package in the registry.
      sha256: expected SHA-256 of the archive, in hexadecimal digits.
      keep: regular expression that the paths of the used members match.
    """

    client: Client
    name: str
    version: str
    sha256: str
    keep: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.client})"


def download(archive: Archive) -> bytes:
    """Fetch an archive by its client; returns its bytes, checked against the hash.

    Raises:
      FetchError: if the client is missing, fails or takes longer than SECONDS, or the archive has another hash.
    """
    client = archive.client
    if (importlib.util.find_spec("pip") if client is Client.PIP else shutil.which(client)) is None:
        raise FetchError(f"{archive}: {client} fetches it, which is not installed: {FIXES[client]}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _run(archive, folder)
        files = [*folder.iterdir()]
        if len(files) != 1:
            raise FetchError(f"{archive}: {client} left {len(files)} files where one was due: see to its settings")
        return checked(archive, files[0].read_bytes())


def checked(archive: Archive, data: bytes) -> bytes:
    """The bytes of an archive as they are.

    Raises:
      FetchError: if their hash is another one.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != archive.sha256:
        raise FetchError(
            f"{archive}: this is another file than the one that is known (sha256 {digest}, {archive.sha256} expected): "
            f"nothing of it was kept; see to where {archive.client} fetches from"
        )
    return data


def unpacked(data: bytes, keep: str) -> dict[str, bytes]:
    """The members of a compressed tar file or a Debian package whose paths match a regular expression."""
    if data.startswith(b"!<arch>\n"):
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", "-"], input=data, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        wanted = [member for member in tar if member.isfile() and re.search(keep, member.name)]
        files = {member.name: tar.extractfile(member) for member in wanted}
        return {name: file.read() for name, file in files.items() if file is not None}


def _call(archive: Archive) -> tuple[list[str], str]:
    """The command that fetches an archive into the working directory, and what it reads from its standard input."""
    match archive.client:
        case Client.NPM:
            return ["npm", "pack", "--loglevel=error", f"{archive.name}@{archive.version}"], ""
        case Client.APT:
            return ["apt-get", "download", f"{archive.name}={archive.version}"], ""
        case Client.PIP:
            # pip runs a source archive's setup.py to read its metadata, so pip itself must check the hash first. Only
            # this package is taken as source: with :all:, pip would build setuptools too.
            options = ["--disable-pip-version-check", "--no-deps", "--no-binary", archive.name, "-r", "/dev/stdin"]
            wanted = f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n"
            return [sys.executable, "-m", "pip", "download", *options], wanted


def _run(archive: Archive, folder: Path) -> None:
    """Run the client in a folder; what it started ends with it."""
    command, given = _call(archive)
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            _, said = child.communicate(given, timeout=SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise FetchError(
                f"{archive}: {archive.client} did not end within {SECONDS:g} seconds: see to the network, and try again"
            ) from error
    if child.returncode:
        lines = [line for line in said.splitlines() if line.strip()][-SHOWN:]
        known = f"its lists have {_offered(archive.name)}, " if archive.client is Client.APT else ""
        heading = f"{archive}: {archive.client} failed: {known}see to the network and to {archive.client}'s settings"
        raise FetchError("\n  ".join([heading, *lines]))


def _offered(name: str) -> str:
    """The versions of a package that apt knows of."""
    listed = subprocess.run(["apt-cache", "madison", name], capture_output=True, text=True, check=False).stdout
    versions = [line.split("|")[1].strip() for line in listed.splitlines()]
    return ", ".join(versions) or f"no {name} (apt-get update renews them)"
