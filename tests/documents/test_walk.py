"""The walk through a folder of documents: every folder once, and links that lead back are named in the report."""

import json
from pathlib import Path

import psd_files
import pytest

from qil_jax.cli import build_dataset
from qil_jax.documents.rows import find_documents


def names(folder: Path) -> list[str]:
    return [str(Path(document).relative_to(folder)) for document in find_documents(str(folder))]


def test_links_that_lead_round_in_circles_end_and_are_reported(tmp_path):
    source, out = tmp_path / "documents", tmp_path / "out"
    (source / "more").mkdir(parents=True)
    (source / "more" / "a.psd").write_bytes(psd_files.design(3))
    for name in ("one", "two"):
        (source / name).symlink_to(source)
    (source / "more" / "up").symlink_to("..")
    assert names(source) == ["more/a.psd", "more/up", "one", "two"]
    assert build_dataset.main([str(source), "--out", str(out), "--runner", "none"]) == 0
    rows = {row["document"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert rows.pop("more/a.psd")["reason"] is None
    assert {row["reason"] for row in rows.values()} == {"unreadable"}
    assert all("a link to a folder that is read already" in row["detail"] for row in rows.values())


def test_a_linked_folder_is_read_where_it_lies_if_it_is_below_and_once_if_not(tmp_path):
    for place in ("documents/z", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.psd").write_bytes(b"")
    source = tmp_path / "documents"
    (source / "a link").symlink_to("z")
    (source / "b link").symlink_to("../elsewhere")
    (source / "c link").symlink_to("../elsewhere")
    assert names(source) == ["a link", "b link/a.psd", "c link", "z/a.psd"]


def test_a_folder_of_nothing_but_links_holds_no_documents(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \.psd or \.psb there"):
        find_documents(str(tmp_path))
