"""One HTML file that shows the layers of results: a viewer, with a gallery before it where there are several results.

The page loads nothing: its policy allows its own scripts and styles, by hash, and pictures that it holds itself.
Everything about a result is JSON in data blocks, in ASCII and without '<', so that no name can end a block. Scripts put
names into the page as text only.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

from qil_jax.errors import QilError
from qil_jax.viewer.entry import Entry, card, contents

SCRIPTS = ("pixels", "compositor", "stack", "psd", "stage", "list", "exploded", "app")
"""The page's scripts, in the order in which they run; they share their names."""
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def viewer_html(entries: Iterable[Entry]) -> str:
    """The page of one or more results.

    It works in an iframe too, as its `srcdoc`; a sandbox must allow scripts and downloads.

    Raises:
      QilError: if there is no entry.
    """
    return "".join(pieces(entries))


def pieces(entries: Iterable[Entry]) -> Iterator[str]:
    """The page in pieces, one of each entry among them, so that a long gallery needs the memory of one result.

    Raises:
      QilError: if there is no entry.
    """
    scripts, style = [_text(f"{name}.js") for name in SCRIPTS], _text("viewer.css")
    head, tail = _text("viewer.html").replace("{{style}}", style).split("{{body}}")
    yield head.replace("{{policy}}", html.escape(policy(scripts, style)))
    index = []
    for number, entry in enumerate(entries):
        index.append(card(entry))
        yield _block(f"result-{number}", contents(entry))
    if not index:
        raise QilError("a viewer needs one result at least")
    yield _block("index", index)
    yield from (f"<script>{script}</script>\n" for script in scripts)
    yield tail


def policy(scripts: Iterable[str], style: str) -> str:
    """The content security policy under which only these scripts run, and nothing is fetched."""
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; img-src data: blob:; style-src {_hash(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(data: Any) -> str:
    """JSON that can stand in a script element, whatever the strings in it are."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for sign, code in ESCAPED.items():
        text = text.replace(sign, code)
    return text


def _block(name: str, data: Any) -> str:
    return f'<script type="application/json" id="{name}">{embedded(data)}</script>\n'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return files("qil_jax.viewer").joinpath(name).read_text(encoding="utf-8")
