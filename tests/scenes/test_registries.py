"""Archives are fetched by the registries' clients and checked; whatever goes wrong is said, and nothing is left."""

import dataclasses
import shutil
import tempfile
import time

import pytest
from registry import JOINTS, Registry, tgz

from qil_jax.scenes import registries
from qil_jax.scenes.registries import Client, FetchError, checked, download, unpacked

DATA = b"an archive"
CLIENTS = pytest.mark.parametrize("client", list(Client))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry; at the end no temporary folder is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield Registry(tmp_path / "registry", monkeypatch)
    assert not [*temporary.iterdir()]


@pytest.mark.parametrize(
    ("client", "name", "call"),
    [
        (Client.NPM, "@scope/package", "npm pack --loglevel=error @scope/package@1.0"),
        (Client.APT, "package-data", "apt-get download package-data=1.0"),
        (
            Client.PIP,
            "package",
            "python -m pip download --disable-pip-version-check --no-deps --no-binary package -r /dev/stdin"
            " < package==1.0 --hash=sha256:{sha256}",
        ),
    ],
)
def test_the_client_of_an_archive_fetches_it(registry, client, name, call):
    archive = registry.add(client, name, DATA)
    assert download(archive) == DATA
    assert registry.calls == [call.format(sha256=archive.sha256)]


@CLIENTS
def test_another_hash_is_refused(registry, client):
    archive = dataclasses.replace(registry.add(client, "package", DATA), sha256="0" * 64)
    with pytest.raises(FetchError, match=rf"package 1\.0 \({client}\): this is another file .*nothing of it was kept"):
        download(archive)
    with pytest.raises(FetchError, match="another file"):
        checked(archive, DATA)


@pytest.mark.parametrize(
    ("client", "fix"), [(Client.NPM, "comes with Node.js"), (Client.APT, "Debian"), (Client.PIP, "-m ensurepip")]
)
def test_a_missing_client_is_named(registry, monkeypatch, tmp_path, client, fix):
    archive = registry.add(client, "package", DATA)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(registries.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=rf"{client} fetches it, which is not installed: .*{fix}"):
        download(archive)


@CLIENTS
def test_a_client_that_fails_is_quoted(registry, client):
    archive = dataclasses.replace(registry.add(client, "package", DATA), version="1.1")
    with pytest.raises(FetchError) as raised:
        download(archive)
    heading, *quoted = str(raised.value).splitlines()
    assert heading.startswith(f"package 1.1 ({client}): {client} failed: ") and f"{client}'s settings" in heading
    assert ("its lists have 2.0-1," in heading) is (client is Client.APT)
    assert len(quoted) == 1 and quoted[0].startswith("  ") and f"package{JOINTS[client]}1.1" in quoted[0]


def test_a_long_complaint_is_cut_and_unknown_packages_are_said(registry):
    registry.replace("apt-get", "#!/bin/sh\nseq 100 >&2\necho >&2\nexit 100\n")
    registry.replace("apt-cache", "#!/bin/sh\n")
    with pytest.raises(FetchError, match=r"its lists have no package \(apt-get update") as raised:
        download(registry.add(Client.APT, "package", DATA))
    assert str(raised.value).splitlines()[1:] == [f"  {i}" for i in range(81, 101)]


@pytest.mark.parametrize(("files", "count"), [("", 0), ("one two", 2)])
def test_a_client_that_succeeds_leaves_one_file(registry, files, count):
    registry.replace("npm", f"#!/bin/sh\nfor file in {files}; do : > $file; done\n")
    with pytest.raises(FetchError, match=f"npm left {count} files where one was due"):
        download(registry.add(Client.NPM, "package", DATA))


def test_a_client_that_hangs_is_ended_with_what_it_started(registry, monkeypatch, tmp_path):
    late = tmp_path / "late"
    registry.replace("npm", f"#!/bin/sh\n(sleep 1; : > '{late}') &\nsleep 60\n")
    monkeypatch.setattr(registries, "SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"npm did not end within 0\.2 seconds"):
        download(registry.add(Client.NPM, "package", DATA))
    assert time.monotonic() - start < 30
    time.sleep(1.2)
    assert not late.exists()


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package: an `ar` archive, each member after a 60-byte header, padded to even length."""
    members = {"debian-binary": b"2.0\n", "control.tar.xz": tgz({}, "w:xz"), "data.tar.xz": tgz(files, "w:xz")}
    chunks = [b"!<arch>\n"]
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        chunks.append(header.encode() + data + b"\n" * (len(data) % 2))
    return b"".join(chunks)


@pytest.mark.parametrize(
    "packed",
    [
        tgz,
        pytest.param(deb, marks=pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")),
    ],
)
def test_the_members_that_are_kept(packed):
    files = {"a/b.txt": b"1", "a/c.md": b"2", "d.txt": b""}
    assert unpacked(packed(files), r"\.txt$") == {"a/b.txt": b"1", "d.txt": b""}
