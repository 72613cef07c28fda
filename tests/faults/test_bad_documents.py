"""Broken and hostile documents: each is read or dropped for a reason, within the limits of time and memory."""

import dataclasses
import io
import time
from pathlib import Path

import psd_files
import pytest
from bombs import die, drop, spin, work_and_wait
from in_process import watched_here
from psd_tools.psd import PSD

from qil_jax.documents.limits import PSDLimits
from qil_jax.documents.psd import read_psd
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.documents.sandbox import ProcessLimits, Sandbox
from tools.fuzz import __main__ as fuzz
from tools.fuzz import documents as fuzz_documents

SMALL = PSDLimits(pixels=4_000_000)
PATIENT = ProcessLimits(seconds=1.0, patience=10_000.0, memory=1 << 29)


@pytest.mark.full
def test_broken_documents_are_survived(monkeypatch, capsys):
    """Two builds of the campaign of tools/fuzz, which has been run over thousands."""
    monkeypatch.setattr(fuzz_documents, "TOGETHER", 40)
    monkeypatch.setattr(fuzz_documents, "watched", watched_here)
    assert fuzz.main(["documents", "--count", "60"]) == 0
    printed = capsys.readouterr().out
    assert "60 cases from seed 0: 0 failed" in printed
    assert all(f"\u2502 {outcome} " in printed for outcome in ("kept", "unreadable", "bad sidecar"))


def test_a_campaign_fails_where_bytes_are_lost_or_a_program_breaks(monkeypatch, capsys):
    """A program that ends in a traceback, after it has changed its input and a file beside its output."""

    def breaks(words):
        source, out = Path(words[1]), Path(words[3])
        (source / "000007.psd").write_bytes(b"changed")
        (out / "notes.txt").unlink()
        return 1, "", "ended in a traceback"

    monkeypatch.setattr(fuzz_documents, "watched", breaks)
    monkeypatch.setattr(fuzz_documents, "_originals", lambda folder: [psd_files.design()])
    assert fuzz.main(["documents", "--seed", "7", "--count", "2"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED, seed 7: ended in a traceback; changed or gone: 000007.psd; changed or gone: notes.txt" in printed
    assert "FAILED, seed 8: no row in the report" in printed and "2 cases from seed 7: 2 failed" in printed


@pytest.mark.parametrize(
    ("function", "argument", "reason", "says"),
    [
        (spin, None, Reason.TIME_LIMIT, "more than 1 s of CPU time"),
        (bytearray, 1 << 31, Reason.MEMORY_LIMIT, "more than 0.5 GiB"),
        (die, 3, Reason.CRASHED, "code 3"),
        (drop, "why", Reason.TOO_FLAT, "why"),
    ],
)
@pytest.mark.full
def test_a_bomb_costs_one_document(function, argument, reason, says):
    with Sandbox(PATIENT) as sandbox:
        with pytest.raises(Dropped) as dropped:
            sandbox(function, argument)
        assert dropped.value.reason is reason and says in dropped.value.detail
        assert sandbox(len, "next") == 4


def test_a_sleeper_costs_one_document():
    with Sandbox(dataclasses.replace(PATIENT, patience=0.1)) as sandbox:
        with pytest.raises(Dropped, match=r"no end after 0\.1 s") as dropped:
            sandbox(time.sleep, 3600)
        assert dropped.value.reason is Reason.TIME_LIMIT
        sandbox.limits = PATIENT
        assert sandbox(len, "next") == 4


@pytest.mark.full
def test_waiting_is_no_work():
    """A busy machine lets a process wait: seconds on the clock are no CPU time, and each call has its own."""
    with Sandbox(PATIENT) as sandbox:
        for _ in range(4):
            assert sandbox(work_and_wait, 0.8) is None


def test_a_small_file_cannot_allocate_without_bound():
    """An image that psd-tools estimates to be larger than the limit is refused before memory is taken."""
    with pytest.raises(Dropped, match="over the configured budget") as dropped:
        read_psd(psd_files.design(), dataclasses.replace(SMALL, max_alloc_bytes=5_000))
    assert dropped.value.reason is Reason.UNREADABLE
    assert read_psd(psd_files.design(), SMALL).layers


@pytest.mark.full
def test_ten_thousand_layers_end_at_the_limit():
    """A document of ten thousand layers, which take 30 s: read or dropped, but within its limits."""
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(0, 40, 40), name="one of many")
    file = PSD.read(io.BytesIO(psd_files.saved(psd)))
    info = file.layer_and_mask_information.layer_info
    info.layer_count = 10_000
    for items in (info.layer_records, info.channel_image_data):
        items.extend(items[0] for _ in range(9_999))
    stream = io.BytesIO()
    file.write(stream)
    with Sandbox(dataclasses.replace(PATIENT, seconds=5.0, memory=1 << 30)) as sandbox:
        try:
            count = len(sandbox(read_psd, stream.getvalue(), SMALL).layers)
        except Dropped as dropped:
            assert dropped.reason in (Reason.TIME_LIMIT, Reason.MEMORY_LIMIT)
        else:
            assert count == 10_000
