"""Packages of public registries with pictures and fonts: their versions, hashes, and the files that are used.

Only files whose licence puts no conditions on derived works are used, unless more licences are given: see FREE.
"""

import dataclasses
import fnmatch
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from qil_jax.files import whole_folder
from qil_jax.scenes.assets import LIST, Kind, Stored, write_list
from qil_jax.scenes.drawings import select_drawings
from qil_jax.scenes.registries import Archive, Client, FetchError, download, unpacked

PUBLIC_DOMAIN = "LicenseRef-public-domain"
FREE = frozenset({"MIT", "Apache-2.0", "CC0-1.0", "OFL-1.1", PUBLIC_DOMAIN})

Members = Mapping[str, bytes]
"""The files of an archive by their paths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """A set of archives that is fetched under one name.

    Attributes:
      name: name of the package and of its folder.
      licence: licence that listings show.
      archives: archives to fetch.
      select: function that returns the assets that the members of all archives give, each with its file's content.
      needs: optional modules that `select` uses, as in `qil_jax.extras`.
    """

    name: str
    licence: str
    archives: tuple[Archive, ...]
    select: Callable[[Members], list[tuple[bytes, Stored]]]
    needs: tuple[str, ...] = ()


def fetch(package: Package, out: Path, licences: frozenset[str] = FREE) -> Path:
    """Fetch and check a package, and write the assets under allowed licences into its folder, which is returned.

    A folder that exists is not changed.

    Raises:
      FetchError: if an archive cannot be fetched, has another hash, or has no asset under an allowed licence.
    """
    folder = out / package.name
    if (folder / LIST).exists():
        return folder
    members: dict[str, bytes] = {}
    for archive in package.archives:
        try:
            members |= unpacked(download(archive), archive.keep)
        except FetchError as error:
            raise FetchError(f"{package.name}: {error}") from error
    chosen = [(data, stored) for data, stored in package.select(members) if stored.licence in licences]
    if not chosen:
        raise FetchError(f"{package.name}: nothing of it is under {', '.join(sorted(licences))}: leave it out")
    with whole_folder(folder) as draft:
        for data, stored in chosen:
            (draft / stored.file).write_bytes(data)
        for path in members:
            if PurePosixPath(path).name.lower().startswith(("license", "licence", "copyright")):
                (draft / path.strip("./").replace("/", "_")).write_bytes(members[path])
        write_list(draft / LIST, [stored for _, stored in chosen])
    return folder


def select_emoji(members: Members) -> list[tuple[bytes, Stored]]:
    """Fluent emoji by their Unicode names: objects, animals, food and faces, but no symbols or flags.

    Each emoji of people is used in one variant: variants of skin, hair or sex would otherwise be in several splits.
    """
    names = json.loads(next(data for path, data in members.items() if path.endswith("data-by-emoji.json")))
    plain = {emoji.replace("\ufe0f", ""): entry for emoji, entry in names.items()}
    chosen = []
    for path in sorted(members):
        stem = PurePosixPath(path).stem
        if not path.endswith(".webp") or not re.fullmatch(r"[0-9a-f]{2,6}(-[0-9a-f]{2,6})*", stem):
            continue
        entry = plain.get("".join(chr(int(code, 16)) for code in stem.split("-")).replace("\ufe0f", ""))
        if entry is None or entry["group"] in ("Symbols", "Flags"):
            continue
        if entry["group"] == "People & Body" and "200d" in stem:
            continue
        name = _with_article(entry["name"].lower())
        chosen.append((members[path], Stored(file=f"{stem}.webp", name=name, kind=Kind.OBJECT, licence="MIT")))
    return chosen


PLACES = {
    "badlands": "badlands", "beach": "a beach", "canyon": "a canyon", "city": "a city", "desert": "a desert",
    "dune": "dunes", "fields": "fields", "fog": "fog", "forest": "a forest", "hills": "hills", "lava": "lava",
    "mountain": "mountains", "sea": "the sea", "sky": "the sky", "snow": "snow", "space": "space",
    "station": "a space station", "valley": "a valley", "water": "water",
}  # fmt: skip


def select_landscapes(members: Members) -> list[tuple[bytes, Stored]]:
    """Endless Sky's photographs of landscapes, with the licence that Debian's copyright file gives for each."""
    copyright_file = next(data.decode() for path, data in members.items() if path.endswith("copyright"))
    rules = debian_licences(copyright_file)
    chosen = []
    for path in sorted(members):
        file = PurePosixPath(path)
        if file.suffix != ".jpg":
            continue
        matching = [licence for rule, licence in rules if fnmatch.fnmatchcase(f"images/land/{file.name}", rule)]
        licence = matching[-1] if matching else "unknown"
        name = PLACES.get(re.sub(r"[\d-].*", "", file.stem), "a landscape")
        chosen.append((members[path], Stored(file=file.name, name=name, kind=Kind.BACKGROUND, licence=licence)))
    return chosen


def debian_licences(text: str) -> list[tuple[str, str]]:
    """Pattern and licence of each entry of `Files`, in order; the last match counts (Debian's DEP-5)."""
    rules = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(\w[\w-]*):((?:.*)(?:\n[ \t].*)*)", paragraph, flags=re.MULTILINE))
        if "Files" in fields and "License" in fields:
            licence = fields["License"].strip().splitlines()[0]
            licence = PUBLIC_DOMAIN if licence == "public-domain" else licence
            rules += [(pattern, licence) for pattern in fields["Files"].split()]
    return rules


def select_fonts(members: Members, licence: str = "OFL-1.1") -> list[tuple[bytes, Stored]]:
    """The TrueType fonts among the members of an archive."""
    files = [PurePosixPath(path) for path in sorted(members) if path.endswith(".ttf")]
    return [(members[str(f)], Stored(file=f.name, name=f.stem, kind=Kind.FONT, licence=licence)) for f in files]


def _with_article(name: str) -> str:
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _font(name: str, version: str, sha256: str) -> Package:
    archive = Archive(
        client=Client.NPM,
        name=f"@expo-google-fonts/{name}",
        version=version,
        sha256=sha256,
        keep=r"(400Regular|700Bold)/.*\.ttf$|LICENSE",
    )
    return Package(name=f"font-{name}-{version}", licence="OFL-1.1", archives=(archive,), select=select_fonts)


PACKAGES: Sequence[Package] = (
    Package(
        name="fluent-emoji-3d-1.1.0",
        licence="MIT",
        archives=(
            Archive(
                client=Client.NPM,
                name="@lobehub/fluent-emoji-3d",
                version="1.1.0",
                sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
                keep=r"\.webp$|LICENSE|package\.json$",
            ),
            Archive(
                client=Client.NPM,
                name="unicode-emoji-json",
                version="0.9.0",
                sha256="ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
                keep=r"data-by-emoji\.json$|LICENSE",
            ),
        ),
        select=select_emoji,
    ),
    Package(
        name="endless-sky-data-0.9.8",
        licence="public domain (the share-alike part is left out)",
        archives=(
            Archive(
                client=Client.APT,
                name="endless-sky-data",
                version="0.9.8-1.2",
                sha256="e45835e05a11e84bb1a890a0ded390246a53b8318f21a25925aa70fa54f80c13",
                keep=r"images/land/[^/]*\.jpg$|copyright$",
            ),
        ),
        select=select_landscapes,
    ),
    Package(
        name="openclipart-svg-0.18",
        licence="public domain",
        archives=(
            Archive(
                client=Client.APT,
                name="openclipart-svg",
                version="1:0.18+dfsg-19",
                sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
                keep=r"svg/(?!signs_and_symbols).*\.svg$|copyright$",
            ),
        ),
        select=functools.partial(select_drawings, licence=PUBLIC_DOMAIN),
        needs=("resvg_py",),
    ),
    _font("lobster", "0.4.1", "4e7e547d76af49b554c23565bbf965f0757196da6ac3f755a3be89c37179d4be"),
    _font("comfortaa", "0.4.2", "1c50ab7ef7635d3e4c5e8133a61d95e2aba58dd62374ad2fcf817506d830466d"),
    _font("eb-garamond", "0.4.3", "4b394f925314ad33790d571812b99370612ed40ca470ac64f9a98ab637dfea20"),
    _font("quicksand", "0.4.1", "c77da42ff49d2b5355760fecd68bb35a6cb561353adea3ad589ce7122d9f4e8f"),
    _font("dosis", "0.4.2", "6590f445d8be0393185900c979e660f6e51cb69526c75662ffbf603eae839779"),
    _font("oswald", "0.4.2", "0cc1d71781b4a5c6c0e6f8b346a71e3f898529e5343ffe34911f98232af2e78c"),
    _font("pacifico", "0.4.1", "0db305f7c2a715a876071a53dc42b847e73d5072ca0853e1e4991164ab06d83f"),
    _font("playfair-display", "0.4.2", "32881439ce695ae85d7d949d4645825a5cb6bac0d464d0ffa09126c922e44e52"),
)
"""The packages that can be fetched."""
