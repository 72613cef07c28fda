"""A package registry in a folder, and clients that fetch from it: scripts in place of npm, pip and apt-get."""

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from qil_jax.scenes.registries import Archive, Client

FETCH = """#!/bin/sh
for last; do :; done
said=""
if [ "$last" = /dev/stdin ]; then read -r last said; said=" < $last $said"; fi
echo "${{0##*/}} $*$said" >> '{root}/calls'
cp "{root}/archives/$last" .
"""
"""A client that notes how it was called and what it read, and copies the archive into its working directory."""
LISTS = """#!/bin/sh
echo " $2 |  2.0-1 | mirror suite/main Packages"
"""
JOINTS = {Client.NPM: "@", Client.PIP: "==", Client.APT: "="}


def tgz(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """A compressed tar file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


class Registry:
    """Archives in `root`, and their clients, which take the place of the true ones while `patch` lasts."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        self.root = root
        (root / "bin").mkdir(parents=True)
        for client in ("npm", "python", "apt-get"):
            self.replace(client, FETCH.format(root=root))
        self.replace("apt-cache", LISTS)
        patch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setattr(sys, "executable", str(root / "bin" / "python"))

    def replace(self, client: str, script: str) -> None:
        """Have a client do something else."""
        (self.root / "bin" / client).write_text(script)
        (self.root / "bin" / client).chmod(0o755)

    def add(self, client: Client, name: str, data: bytes, keep: str = "") -> Archive:
        """Offer an archive as version 1.0 of a package."""
        file = self.root / "archives" / f"{name}{JOINTS[client]}1.0"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return Archive(client=client, name=name, version="1.0", sha256=hashlib.sha256(data).hexdigest(), keep=keep)

    @property
    def calls(self) -> list[str]:
        """How the clients were called so far."""
        return (self.root / "calls").read_text().splitlines()
