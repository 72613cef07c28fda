"""Captions of a run's pictures and the files in which they are kept, written by a stand-in for the model."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from qil_jax.encoders.caption_pixels import PixelConfig
from qil_jax.encoders.caption_prompts import CaptionLanguage
from qil_jax.inference.caption_job import kept_captions, require_captionable, write_captions
from qil_jax.inference.captions import CaptionFiles, KeptCaptions, prompts_of
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.job import JobError, plan_results
from qil_jax.inference.pictures import find_pictures
from qil_jax.inference.request import JobOptions, Request

ASKED = {"checkpoint": "0123456789abcdef", "dtype": None, "resolution": 64}
BY = {"written_by": "the checkpoint", "language": "en"}


class Writer:
    """Describes pictures by number and colour, and may be cut off."""

    def __init__(self, *, stops_at: int = 99):
        self.seen: list[int] = []
        self._stops_at = stops_at

    def __call__(self, images) -> list[str]:
        if len(self.seen) >= self._stops_at:
            raise KeyboardInterrupt
        self.seen.append(len(images))
        return [f"{sum(self.seen)}: {image.getpixel((0, 0))}" for image in images]


@pytest.fixture
def pictures(tmp_path):
    """Pictures without a prompt, two of which are one file, and one with."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in {"a": "red", "b": "blue", "like_a": "red", "said": "red", "z": "lime"}.items():
        Image.new("RGB", (40, 40) if name != "z" else (20, 20), colour).save(folder / f"{name}.png")
    (folder / "said.txt").write_text("it is said")
    return find_pictures([folder]).pictures


@pytest.fixture
def store(tmp_path) -> KeptCaptions:
    return KeptCaptions(folder=tmp_path / "out" / "kept", asked=ASKED)


def write(pictures, store, writer, batch=2, **more):
    return write_captions(pictures, store, writer, written_by=BY, batch=batch, **more)


def prompts(pictures) -> dict[str, str | None]:
    return {name: picture.prompt for name, picture in pictures.items()}


def test_equal_files_are_captioned_once_and_small_ones_first(pictures, store):
    shown, writer = [], Writer()
    written = write(pictures, store, writer, on_caption=lambda name, text: shown.append((name, text)))
    assert writer.seen == [2, 1] and [name for name, _ in shown] == ["z", "a", "like_a", "b"]
    assert prompts(written) == dict(shown) | {"said": "it is said"}
    assert written["a"].prompt == written["like_a"].prompt == "2: (255, 0, 0, 255)"
    assert written["b"].caption == BY | {"text": written["b"].prompt} and written["said"].caption is None
    assert kept_captions(pictures, store, BY) == written
    assert write(written, store, Writer(stops_at=0)) == written


def test_what_an_interrupt_leaves_is_kept(pictures, store):
    with pytest.raises(KeyboardInterrupt):
        write(pictures, store, Writer(stops_at=2), batch=1)
    found = kept_captions(pictures, store, BY)
    assert [name for name, prompt in prompts(found).items() if prompt is None] == ["b"]
    writer = Writer()
    assert prompts(write(found, store, writer))["b"] == "1: (0, 0, 255, 255)" and writer.seen == [1]


def test_another_question_has_another_caption(pictures, store):
    write(pictures, store, Writer())
    other = KeptCaptions(folder=store.folder, asked={**ASKED, "resolution": 128})
    assert prompts(kept_captions(pictures, other, BY)) == prompts(pictures)
    write(pictures, other, Writer())
    assert len(list(store.folder.iterdir())) == 6


def test_an_altered_file_is_written_anew(pictures, store):
    z = {"z": pictures["z"]}
    write(z, store, Writer())
    (file,) = store.folder.iterdir()
    whole = file.read_text()
    assert json.loads(whole)["picture"] == "z.png"
    for altered in ("", whole[:-9], whole.replace("1: (0", "2: (0").replace('"dtype": null', '"dtype": 3'), "[3]"):
        file.write_text(altered)
        assert kept_captions(z, store, BY)["z"].prompt is None
        write(z, store, Writer())
        assert file.read_text() == whole


def test_the_first_of_two_programs_is_right(pictures, store, tmp_path):
    """What is kept is never replaced, and is what both go on with."""
    files = CaptionFiles(folder=tmp_path / "texts")
    for kept in (store, files):
        assert kept.keep("z", pictures["z"], "first") == kept.keep("z", pictures["z"], "second") == "first"
        assert write(pictures, kept, Writer())["z"].prompt == "first"
    assert len(list(store.folder.iterdir())) == 3 and sorted(files.folder.iterdir())[-1].read_text() == "first\n"


def test_captions_beside_pictures_are_prompts(pictures, tmp_path):
    folder = tmp_path / "pictures"
    write(pictures, CaptionFiles(), Writer())
    found = find_pictures([folder]).pictures
    assert None not in prompts(found).values() and prompts(found)["said"] == "it is said"
    assert all(picture.caption is None for picture in found.values())


def test_places_that_cannot_hold_captions(pictures, tmp_path, monkeypatch):
    assert CaptionFiles().problems(pictures) == CaptionFiles(folder=tmp_path / "new" / "er").problems(pictures) == []
    Image.new("RGB", (40, 40)).save(tmp_path / "pictures" / "b.bmp")
    (problem,) = CaptionFiles().problems(find_pictures([tmp_path / "pictures"]).pictures)
    assert problem.endswith("b.bmp and b.png would share b.txt; give --out, or rename one")
    (tmp_path / "file").write_text("mine")
    assert "is a file; give --out a folder" in CaptionFiles(folder=tmp_path / "file" / "x").problems(pictures)[0]
    monkeypatch.setattr(os, "access", lambda *a: False)  # permissions do not bind root, who may run this test
    assert [problem.partition("; ")[0] for problem in CaptionFiles().problems(pictures)] == [
        f"{tmp_path / 'pictures'}: not writable"
    ]


def test_pictures_that_the_vision_tower_refuses_are_named(pictures, tmp_path):
    Image.new("RGB", (5000, 10)).save(tmp_path / "flat.png")
    found = find_pictures([tmp_path / "flat.png"]).pictures
    with pytest.raises(JobError, match=r"flat\.png: 14304x32 pixels cannot be captioned, .* give the picture a prompt"):
        require_captionable(pictures | found, PixelConfig(), 640)
    require_captionable(pictures, PixelConfig(), 640)


def test_results_record_who_wrote_the_prompt(pictures, store, tmp_path):
    """A caption given as a prompt is the same result; a prompt of all pictures wins."""
    planned = lambda found, **options: plan_results(
        found,
        tmp_path,
        JobOptions(layers=1, **options).filled(Defaults()),
        checkpoint={"fingerprint": "0"},
        settings={"steps": 1},
    )
    before, after = planned(pictures), planned(write(pictures, store, Writer()))
    assert "prompt" not in before[0].made_from["settings"] and before[3].made_from["settings"]["prompt"] == "it is said"
    a, said = after[0].made_from, after[3].made_from
    assert a["caption"]["text"] == a["settings"]["prompt"] == after[0].prompt and a["caption"]["language"] == "en"
    assert "caption" not in said and said == before[3].made_from
    given = planned(write(pictures, store, Writer()), prompt="told")
    assert all("caption" not in result.made_from and result.prompt == "told" for result in given)


def test_requests_without_prompts_are_captioned_together():
    asked, image = [], Image.fromarray(np.zeros((8, 8, 4), np.uint8))

    def describe(images, **how):
        asked.append((len(images), *how.values()))
        return [f"caption {len(asked)}.{i}" for i in range(len(images))]

    ask = lambda **options: Request(image=image, **{"resolution": 64, **options})
    zh = CaptionLanguage.ZH
    requests = [ask(), ask(prompt="told"), ask(caption_language=zh), ask(), ask(prompt=""), ask(resolution=96)]
    found = prompts_of(requests, describe)
    assert found == ["caption 1.0", "told", "caption 2.0", "caption 1.1", "", "caption 3.0"]
    assert asked == [(2, 64, "en", 2), (1, 64, "zh", 1), (1, 96, "en", 1)]
    assert prompts_of(requests, None) == ["", "told", "", "", "", ""]
