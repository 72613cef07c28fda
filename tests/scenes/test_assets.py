"""Packages are checked, unpacked and split by asset; only free licences are used; scenes name their assets."""

import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageFont
from registry import Registry, tgz

from qil_jax.cli import fetch_assets, make_scenes
from qil_jax.programs import called, ended
from qil_jax.records.sources import open_source
from qil_jax.scenes import packages
from qil_jax.scenes.assets import LIST, Kind, load_assets, read_list
from qil_jax.scenes.packages import PUBLIC_DOMAIN, FetchError, Package, debian_licences, fetch
from qil_jax.scenes.registries import Client, unpacked
from qil_jax.scenes.scene import SceneConfig, make_scene

COPYRIGHT = """Format: x

Files: *
Copyright: A
License: GPL-3+

Files: images/land/*
Copyright: Various
License: public-domain
 Taken from somewhere.

Files: images/land/sea*
 images/land/*-him*
License: CC-BY-SA-4.0
"""


def picture(seed: int, form: str, *, opaque: bool) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.full((40, 60, 4), (*rng.integers(0, 256, 3), 255), np.uint8)
    if not opaque:
        pixels[:5, :, 3] = pixels[:, :7, 3] = 0
    stream = io.BytesIO()
    Image.fromarray(pixels).convert("RGB" if opaque else "RGBA").save(stream, form, lossless=not opaque)
    return stream.getvalue()


EMOJI = [0x1F418 + i for i in range(60)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield Registry(tmp_path_factory.mktemp("registry"), patch)


@pytest.fixture(scope="module")
def known(registry) -> dict[str, Package]:
    """A package of pictures and one of landscapes."""
    names = {chr(code): {"name": f"creature {code:x}", "group": "Animals & Nature"} for code in EMOJI}
    names["\U0001f3c1"] = {"name": "flag", "group": "Flags"}
    pictures = {f"package/assets/{code:x}.webp": picture(code, "webp", opaque=False) for code in [*EMOJI, 0x1F3C1]}
    pictures |= {"package/LICENSE": b"MIT", "package/assets/odd.webp": b""}
    files = {f"./usr/share/images/land/{n}.jpg": picture(7, "jpeg", opaque=True) for n in ("beach1", "sea2", "sky-him")}
    files["./usr/share/doc/x/copyright"] = COPYRIGHT.encode()
    emoji = (
        registry.add(Client.NPM, "@free/emoji", tgz(pictures), r"\.webp$|LICENSE"),
        registry.add(Client.NPM, "names", tgz({"package/data-by-emoji.json": json.dumps(names).encode()}), "json$"),
    )
    land = (registry.add(Client.APT, "land", tgz(files), r"\.jpg$|copyright$"),)
    return {
        "emoji": Package(name="emoji", licence="MIT", archives=emoji, select=packages.select_emoji),
        "land": Package(name="land", licence="mixed", archives=land, select=packages.select_landscapes),
    }


@pytest.fixture(scope="module")
def filled(known, tmp_path_factory):
    out = tmp_path_factory.mktemp("assets")
    for package in known.values():
        fetch(package, out)
    return out


def test_what_is_taken_of_each_package(filled):
    emoji, land = read_list(filled / "emoji" / LIST), read_list(filled / "land" / LIST)
    assert len(emoji) == 60 and {x.licence for x in emoji} == {"MIT"}
    assert emoji[0].name == "a creature 1f418" and (filled / "emoji" / "package_LICENSE").read_bytes() == b"MIT"
    assert [(x.file, x.name, x.kind, x.licence) for x in land] == [
        ("beach1.jpg", "a beach", Kind.BACKGROUND, PUBLIC_DOMAIN)
    ]
    assert sorted(f.name for f in (filled / "land").glob("*.jpg")) == ["beach1.jpg"]


def test_more_licences_only_when_asked_for(known, tmp_path):
    folder = fetch(known["land"], tmp_path, packages.FREE | {"CC-BY-SA-4.0"})
    assert {x.file: x.licence for x in read_list(folder / LIST)} == {
        "beach1.jpg": PUBLIC_DOMAIN, "sea2.jpg": "CC-BY-SA-4.0", "sky-him.jpg": "CC-BY-SA-4.0"
    }  # fmt: skip
    with pytest.raises(FetchError, match="nothing of it is under MIT"):
        fetch(known["land"], tmp_path / "other", frozenset({"MIT"}))


def test_another_file_is_refused_and_nothing_is_kept(known, tmp_path):
    (first, second) = known["emoji"].archives
    bad = dataclasses.replace(known["emoji"], archives=(first, dataclasses.replace(second, sha256="0" * 64)))
    with pytest.raises(FetchError, match=r"emoji: names 1\.0 \(npm\): this is another file than the one that is known"):
        fetch(bad, tmp_path)
    with pytest.raises(FetchError, match="npm failed"):
        fetch(dataclasses.replace(bad, archives=(dataclasses.replace(first, version="2.0"),)), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_is_there_is_not_fetched_again(known, filled):
    gone = dataclasses.replace(known["emoji"], archives=())
    assert fetch(gone, filled) == filled / "emoji"


def test_every_asset_is_in_one_split(filled):
    whole = load_assets(filled)
    loaded = [load_assets(filled, split) for split in ("train", "validation", "test")]
    names = [[asset.name for asset in part.objects] for part in loaded]
    assert sorted(itertools.chain(*names)) == sorted(asset.name for asset in whole.objects)
    assert len(whole.objects) == 60 and all(names)
    assert (whole.objects[0].pixels[..., 3] == 255).all() and whole.objects[0].pixels.shape == (35, 53, 4)


@pytest.mark.full
def test_scenes_of_a_split_use_its_assets_only(filled, tmp_path):
    out = tmp_path / "scenes"
    command = ["--count", "120", "--side", "48", "--assets", str(filled), "--out", str(out)]
    assert make_scenes.main(command) == 0
    used = {}
    for split in ("train", "validation", "test"):
        source = open_source(out, split)
        records = [source[i] for i in range(len(source))]
        used[split] = {part for record in records for part in record.source.split(", ")[1:] if "emoji" in part}
        mine = {f"emoji: {asset.name}" for asset in load_assets(filled, split).objects}
        assert used[split] <= mine and used[split]
        for record in records:
            assert ("MIT" in record.licence) == ("emoji: " in record.source)
            assert (PUBLIC_DOMAIN in record.licence) == ("land: " in record.source)
    info = (out / "layered_dataset" / "1.0.0" / "LICENSE").read_text()
    assert info.strip() == f"{PUBLIC_DOMAIN} AND MIT"


def test_fonts_are_named_with_their_licence(tmp_path):
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    files = {"package/400Regular/Plain.ttf": font.font_bytes, "package/LICENSE_FONT": b"OFL"}
    members = unpacked(tgz(files), r"\.ttf$")
    ((data, stored),) = packages.select_fonts(members)
    assert (data, stored.kind, stored.licence) == (font.font_bytes, Kind.FONT, "OFL-1.1")
    (tmp_path / "font-plain").mkdir()
    (tmp_path / "font-plain" / "Plain.ttf").write_bytes(data)
    packages.write_list(tmp_path / "font-plain" / LIST, [stored])
    assets = load_assets(tmp_path)
    scenes = [make_scene(seed, SceneConfig(side=64, text=1.0), assets) for seed in range(3)]
    assert all(scene.licence == "OFL-1.1" and "font-plain: Plain" in scene.source for scene in scenes)


def test_debian_s_last_rule_counts():
    rules = debian_licences(COPYRIGHT)
    assert [licence for _, licence in rules] == ["GPL-3+", PUBLIC_DOMAIN, "CC-BY-SA-4.0", "CC-BY-SA-4.0"]


def test_the_tool(known, filled, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fetch_assets, "PACKAGES", list(known.values()))
    assert fetch_assets.main(["--list"]) == 0 and "emoji   MIT" in capsys.readouterr().out
    assert fetch_assets.main(["emoji", "--out", str(tmp_path)]) == 0
    assert "60 objects under MIT" in capsys.readouterr().out
    assert ended(fetch_assets.main, ["nothing", "--out", str(tmp_path)]) == 2
    assert "no package nothing" in capsys.readouterr().err
    assert ended(fetch_assets.main, []) == 2
    (tmp_path / "emoji" / LIST).write_text("[1]")
    words = ["--count", "1", "--out", str(tmp_path / "x"), "--assets"]
    assert ended(make_scenes.main, [*words, str(tmp_path)]) == 2
    assert "fetch it again" in capsys.readouterr().err
    assert ended(make_scenes.main, [*words, str(tmp_path / "no")]) == 2
    assert called("fetch-assets") in capsys.readouterr().err


def test_every_known_package_is_free_and_pinned():
    assert len({package.name for package in packages.PACKAGES}) == len(packages.PACKAGES) >= 10
    for package in packages.PACKAGES:
        for one in package.archives:
            assert one.version[0].isdigit() and len(one.sha256) == 64
