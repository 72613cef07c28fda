"""Tables that programs write into documents, between two marks."""

import re
from collections.abc import Sequence
from pathlib import Path


def write_between(file: Path, mark: str, rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Replace what stands between `<!-- mark: begin -->` and `<!-- mark: end -->`: a table, its head first, and a note.

    Raises:
      ValueError: if the file has no such marks.
    """
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    head, *others = rows
    lines = ["| " + " | ".join(row) + " |" for row in others]
    body = "\n".join(
        [begin, "| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines, *(["", note] if note else []), end]
    )
    text = file.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{file}: has no marks {begin} and {end}: put them where the table belongs")
    file.write_text(re.sub(f"{begin}.*?{end}", lambda _: body, text, flags=re.DOTALL), encoding="utf-8")
