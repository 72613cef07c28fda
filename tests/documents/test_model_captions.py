"""Documents captioned by a checkpoint's own model: in batches, once, in the process that starts the build."""

import json
from pathlib import Path

import numpy as np
import psd_files
import pytest
import tensorflow_datasets as tfds
from captioning import write_captioning_checkpoint
from etils import epath

from qil_jax.cli import build_dataset
from qil_jax.documents.captions import Captioner, ModelCaptioner
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.encoders.captioner import Captioner as Model
from qil_jax.programs import ended
from qil_jax.records.record import decode

PICTURES = [np.full((4, 6, 4), value, np.uint8) for value in (1, 2, 3, 1, 4, 5)]


class Describer:
    """Says how bright pictures are, nothing of those of 3, and may be cut off."""

    def __init__(self, *, stops_at: int = 99):
        self.seen: list[int] = []
        self._stops_at = stops_at

    def __call__(self, pictures) -> list[str]:
        if len(self.seen) >= self._stops_at:
            raise KeyboardInterrupt
        self.seen.append(len(pictures))
        return ["" if picture[0, 0, 0] == 3 else f"of {picture[0, 0, 0]}" for picture in pictures]


@pytest.fixture
def kept(tmp_path) -> ModelCaptioner:
    return ModelCaptioner(asked="the model", cache=epath.Path(tmp_path / "captions"))


def test_pictures_are_captioned_once_in_batches(kept):
    describe = Describer()
    assert list(kept.write(PICTURES, describe, batch=2)) == [2, 5, 6] and describe.seen == [2, 2, 1]
    assert list(kept.write(PICTURES, describe, batch=2)) == [6] and describe.seen == [2, 2, 1]
    assert isinstance(kept, Captioner) and kept(PICTURES[3], "x.psd") == kept(PICTURES[0], "y.psd") == "of 1"
    for captioner, picture in ((kept, PICTURES[2]), (ModelCaptioner(asked="another", cache=kept.cache), PICTURES[0])):
        with pytest.raises(Dropped) as dropped:
            captioner(picture, "x.psd")
        assert dropped.value.reason is Reason.CAPTION_FAILED


def test_what_an_interrupt_leaves_is_kept(kept):
    with pytest.raises(KeyboardInterrupt):
        list(kept.write(PICTURES, Describer(stops_at=1), batch=2))
    describe = Describer()
    assert list(kept.write(PICTURES, describe, batch=2)) == [5, 6] and describe.seen == [2, 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_captioning_checkpoint(tmp_path_factory.mktemp("captions") / "checkpoint")


def captions(out: Path) -> dict[str, str]:
    builder = tfds.builder_from_directory(str(out / "layered_dataset" / "1.0.0"))
    records = [decode(x) for split in builder.info.splits for x in builder.as_data_source(split)]
    return {record.source: record.caption for record in records}


@pytest.mark.full
def test_a_dataset_with_captions_by_the_model(checkpoint, tmp_path, monkeypatch, capsys):
    """Beam's workers and the loop read the same captions, which one model has written."""
    asked, generate = [], Model.generate
    monkeypatch.setattr(Model, "generate", lambda self, *a, **k: asked.append(len(a[0])) or generate(self, *a, **k))
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.psd").write_bytes(psd_files.design(100 * i))
    (tmp_path / "in" / "0.txt").write_text("said beside it")
    command = [str(tmp_path / "in"), "--caption-checkpoint", str(checkpoint), "--caption-batch", "3"]
    assert build_dataset.main([*command, "--out", str(tmp_path / "beam")]) == 0
    assert asked == [3] and capsys.readouterr().out.count("loading") == 1
    found = captions(tmp_path / "beam")
    assert len(found) == 3 and all(len(caption) > 3 for caption in found.values())
    assert build_dataset.main([*command, "--out", str(tmp_path / "beam")]) == 0 and asked == [3]
    (tmp_path / "loop" / ".work").mkdir(parents=True)
    (tmp_path / "beam" / ".work" / "captions").rename(tmp_path / "loop" / ".work" / "captions")
    assert build_dataset.main([*command, "--out", str(tmp_path / "loop"), "--runner", "none"]) == 0
    assert captions(tmp_path / "loop") == found and asked == [3]


def test_what_cannot_caption_is_refused_before_any_work(checkpoint, tmp_path, capsys):
    (tmp_path / "a.psd").write_bytes(psd_files.design())
    (tmp_path / "bare" / "text_encoder").mkdir(parents=True)
    (tmp_path / "bare" / "text_encoder" / "config.json").write_text(json.dumps({}))
    words = [str(tmp_path / "a.psd"), "--out", str(tmp_path / "out"), "--caption-checkpoint"]
    for more, says in (
        ([str(tmp_path / "bare")], "tokenizer"),
        ([str(tmp_path / "nowhere")], "tokenizer"),
        ([str(checkpoint), "--caption-mesh", "data=99"], "devices"),
        ([str(checkpoint), "--caption-batch", "0"], "--caption-batch must be above 0"),
        ([str(checkpoint), "--caption-url", "http://x"], "--caption-checkpoint goes with neither --caption-url nor"),
    ):
        assert ended(build_dataset.main, [*words, *more]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
