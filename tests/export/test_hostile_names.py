"""Whatever a layer is called, its files stay where they belong, and its name comes back where the format can say it."""

import re
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.names import plain_text, safe_name
from qil_jax.export.psd import LONGEST_NAME
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage

COUNT, EACH = 1000, 50
KNOWN = [
    "../", "../../etc/passwd", "..\\..\\windows\\system32", "/etc/passwd", "C:\\autoexec.bat", "\\\\server\\share",
    "CON", "con.txt", "NUL", "aux.png", "COM1", "lpt9.psd", "COM¹", ".", "..", "...", "", " ", "   .", ".hidden",
    "a" * 300, "é" * 300, "🐈" * 300, "a\0b", "a\nb", "tab\there", "\x1b[31mred", "trailing.", "trailing ",
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "&lt;&amp;\"'", "]]>", "<!--", "{{7*7}}",
    "\u202egnp.exe", "שלום עולם", "مرحبا", "\u200bzero\u200bwidth", "\ufeffbom", "\ud800", "a\udfffb", "e\u0301",
    "👩‍👩‍👧‍👦", "%2e%2e%2f", "%s%n", "$(reboot)", "`reboot`", "; rm -rf /", "| cat", "file:///etc/passwd", "~", "~root",
    "manifest.json", "layers.psd", "result.json", "stack.xml", "mimetype", "01_a.png", "-rf", "--out=x", "*", "?",
]  # fmt: skip
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)


def names() -> list[str]:
    """Known tricks, and mixtures of their pieces and of characters of all planes."""
    rng = np.random.default_rng(0)
    found = list(KNOWN)
    while len(found) < COUNT:
        pieces = [str(rng.choice(KNOWN)) if rng.random() < 0.5 else chr(rng.integers(0, 0x110000)) for _ in range(4)]
        found.append("".join(pieces)[: rng.integers(1, 320)])
    return found


def batches() -> list[tuple[str, ...]]:
    every = names()
    return [tuple(every[i : i + EACH]) for i in range(0, COUNT, EACH)]


def tree(of: tuple[str, ...]) -> LayerTree:
    """A stack of these names whose first layer is a group of two layers with such names."""
    layers = np.zeros((len(of), 2, 3, 4), np.uint8)
    layers[:, 0, 1] = np.arange(len(of) * 4).reshape(-1, 4) % 200 + 55
    inner = LayerTree.of(LayeredImage(layers=layers[:2], names=of[:2]))
    outer = LayeredImage(layers=np.concatenate([inner.leaves().composite_8bit()[None], layers[1:]]), names=of)
    return LayerTree(layered=outer, groups={0: Group(tree=inner, left=0, top=0)})


def is_harmless(part: str) -> bool:
    """Whether Windows, macOS and Linux take this as the name of one file."""
    return (
        0 < len(part.encode()) <= 255
        and not RESERVED.fullmatch(part)
        and not part.startswith((".", "-", "~"))
        and not part.endswith((".", " "))
        and not set(part) & set('/\\:*?"<>|%&;$`')
        and all(unicodedata.category(character)[0] not in "CZ" for character in part)
    )


def test_file_names_are_harmless():
    assert len(set(names())) > 0.95 * COUNT
    for name in names():
        assert is_harmless(safe_name(name)), name
        plain_text(name).encode()


@pytest.mark.parametrize("format", Format)
@pytest.mark.full
def test_names_stay_inside_and_come_back(tmp_path, format):
    for number, batch in enumerate(batches()):
        content, folder = tree(batch), tmp_path / str(number) / "deep"
        path = folder / ("out" if format is Format.PNG else f"out.{format}")
        formats.write(content, path, format)
        made = [file for file in (tmp_path / str(number)).rglob("*") if file.is_file()]
        assert made and all(file == path or path in file.parents for file in made)
        inside = [file.relative_to(folder).parts for file in made]
        if format in (Format.ZIP, Format.ORA):
            with zipfile.ZipFile(path) as archive:
                inside += [PurePosixPath(name).parts for name in archive.namelist()]
                assert len(set(archive.namelist())) == len(archive.namelist())
        assert all(is_harmless(part) for parts in inside for part in parts)
        got = formats.read(path)
        assert got.layered.names == tuple(expected(name, format) for name in batch)
        np.testing.assert_array_equal(got.leaves().layers, content.leaves().layers)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(str(i) for i in range(COUNT // EACH))


def expected(name: str, format: Format) -> str:
    """What comes back: JSON keeps everything, XML has no control characters, a PSD has 255 characters."""
    if format in (Format.PNG, Format.ZIP):
        return name
    plain = plain_text(name)
    return plain[:LONGEST_NAME] if format is Format.PSD else plain


def test_folders_do_not_read_what_lies_outside(tmp_path):
    content = tree(("a", "b"))
    formats.write(content, tmp_path / "out", Format.PNG)
    listing = tmp_path / "out" / "manifest.json"
    text = listing.read_text()
    (tmp_path / "secret.png").write_bytes((tmp_path / "out" / "02_b.png").read_bytes())
    for place in ("../secret.png", str(tmp_path / "secret.png"), "..\\\\secret.png", "a/../../secret.png"):
        listing.write_text(text.replace('"02_b.png"', f'"{place}"', 1))
        with pytest.raises(ValueError, match="leads out of the folder"):
            formats.read(tmp_path / "out")


def test_links_are_not_followed_out_of_archives(tmp_path):
    path = tmp_path / "a.zip"
    formats.write(tree(("a", "b")), path, Format.ZIP)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped.png", b"x")
    before = {p for p in tmp_path.parent.rglob("*") if "escaped" in p.name}
    formats.read(path)
    assert {p for p in Path(tmp_path).parent.rglob("*") if "escaped" in p.name} == before == set()
