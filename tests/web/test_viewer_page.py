"""The viewer's page as text: nothing in it comes from anywhere else, and no name gets out of its block."""

import base64
import hashlib
import json
import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from viewing import entry, scene, tree

from qil_jax.cli.view import main
from qil_jax.errors import ProblemsError, QilError
from qil_jax.export.result import write_result
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.viewer.page import SCRIPTS, embedded, viewer_html
from qil_jax.viewer.stored import result_folders, stored_entry

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    "{{style}}{{body}}{{policy}}",
    "\u202eevil\u2066\u0000\u2028\u2029",
    "__proto__",
    "../../etc/passwd",
    "CON",
    "x" * 300,
    "🐈‍⬛ 空の層 \ud800",
    "'\"`${alert(1)}`\\",
    "&lt;b&gt;&#60;i&#62;",
    "",
]
PARTS = [
    "</script>",
    "<script>",
    "<img onerror=alert(1) src=x>",
    "<!--",
    "-->",
    "\u202e",
    "\x00",
    "&quot;",
    "'",
    '"',
    "🐈",
]


def hostile_names(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    made = ["".join(rng.choice(PARTS, rng.integers(1, 9))) for _ in range(count - len(HOSTILE))]
    return [*HOSTILE, *made]


class Elements(HTMLParser):
    """The elements of a page, and the text of its blocks of data."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple] = []
        self.blocks: dict[str, str] = {}
        self.block: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(attrs)))
        fields = dict(attrs)
        self.block = fields.get("id") if fields.get("type") == "application/json" else None

    def handle_data(self, data):
        if self.block is not None:
            self.blocks[self.block] = self.blocks.get(self.block, "") + data

    def handle_endtag(self, tag):
        self.block = None


def named(names: list[str]) -> LayeredImage:
    return LayeredImage(layers=np.zeros((len(names), 1, 1, 4), np.uint8), names=tuple(names))


def test_a_thousand_hostile_names_stay_in_their_blocks():
    names = hostile_names(1000)
    facts = {name: name for name in names}
    titled = [entry(named(HOSTILE), title=title) for title in HOSTILE]
    seen = Elements(viewer_html([*titled, entry(named(names), facts=facts)]))
    assert seen.found == Elements(viewer_html([entry(named(["x"]))] * (len(HOSTILE) + 1))).found
    assert [layer["name"] for layer in json.loads(seen.blocks[f"result-{len(HOSTILE)}"])["layers"]] == names
    for i, title in enumerate(HOSTILE):
        stored = json.loads(seen.blocks[f"result-{i}"])
        assert stored["title"] == title
        assert re.fullmatch(r"[\w.-]{1,60}", stored["file"])
    assert [card["title"] for card in json.loads(seen.blocks["index"])] == [*HOSTILE, "scene"]


@given(st.text(st.characters(codec=None)))
@example("</script>")
@example("<!--<script>")
def test_no_text_can_end_a_block(text):
    stored = embedded({text: [text]})
    assert stored.isascii() and not {*"<>&"} & {*stored}
    assert json.loads(stored) == {text: [text]}


def test_the_policy_allows_these_scripts_and_nothing_else():
    page = viewer_html([entry(scene())])
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#x27;", "'").split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    for kind, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        texts = re.findall(pattern, page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert rules[kind].split() == [f"'sha256-{digest}'" for digest in digests] and digests
    assert page.index("Content-Security-Policy") < page.index("<style") < page.index("<script")


def test_the_page_names_no_address_and_never_writes_html():
    page = viewer_html([entry(scene(), original=scene().layers[0])])
    assert not re.findall(
        r"https?:|//[a-z]|url\(|@import|<link(?! rel=\"icon\" href=\"data:,\")", page.split('id="result-0"')[0]
    )
    scripts = "".join(re.findall(r"<script>(.*?)</script>", page, re.DOTALL))
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "localStorage"):
        assert word not in scripts


def test_layers_are_stored_in_tight_boxes():
    stored = json.loads(Elements(viewer_html([entry(tree())])).blocks["result-0"])
    assert [(layer["name"], layer["left"], layer["top"], layer["groups"]) for layer in stored["layers"]] == [
        ("ground", 0, 0, []),
        ("disc", 10, 13, [0]),
        ("box", 34, 8, [0, 1]),
        ("noise", 40, 20, [0, 1]),
    ]
    assert stored["groups"] == ["group", "things"] and "groups" in stored["no_script"]


def test_the_parts_of_the_page_are_installed_with_the_package():
    root = Path(__file__).resolve().parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "qil_jax.viewer"
    ]
    parts = {file.name for file in (root / "qil_jax" / "viewer").iterdir() if file.is_file() and file.suffix != ".py"}
    assert {*SCRIPTS} <= {name.removesuffix(".js") for name in parts}
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in parts)


def test_there_is_something_to_show():
    with pytest.raises(QilError, match="one result at least"):
        viewer_html([])


@pytest.fixture
def results(tmp_path):
    """A picture, and two results in a folder, of which one was made of the picture."""
    picture = tmp_path / "pictures" / "fox.png"
    picture.parent.mkdir()
    layered = scene()
    Image.fromarray(layered.layers[0]).save(picture)
    sha256 = hashlib.sha256(picture.read_bytes()).hexdigest()
    record = {
        "input": "fox.png",
        "input_sha256": sha256,
        "health": {"empty": 1, "duplicates": 0},
        "settings": {"prompt": "x"},
        "checkpoint": {"folder": "released", "fingerprint": "f0"},
    }
    write_result(tmp_path / "out" / "fox", layered, layered.layers[0], record)
    write_result(tmp_path / "out" / "<b>owl", tree(), layered.composite_8bit(), {"settings": None})
    return tmp_path


def test_a_folder_of_results_is_a_gallery(results, capsys):
    out = results / "gallery.html"
    assert main([str(results / "out"), "--out", str(out), "--input", str(results / "pictures")]) == 0
    seen = Elements(out.read_text(encoding="utf-8"))
    owl, fox = json.loads(seen.blocks["index"])
    assert (owl["title"], owl["layers"], owl["input"]) == ("<b>owl", 4, None)
    assert re.fullmatch(r"PSNR (exact|[\d.]+ dB)", owl["facts"][0])
    assert (fox["title"], fox["layers"], fox["size"]) == ("fox", 5, [64, 48])
    said = json.loads(seen.blocks["result-1"])["facts"][1:]
    assert said == [["Faults", "1 empty"], ["Input", "fox.png"], ["Prompt", "x"], ["Checkpoint", "released"]]
    assert fox["facts"][1] == "Faults 1 empty" and fox["input"].startswith("data:image/webp;base64,")
    assert {*seen.blocks} == {"result-0", "result-1", "index"}
    assert "2 results" in capsys.readouterr().out


def test_the_input_is_found_by_its_content(results, monkeypatch):
    fox = results / "out" / "fox"
    picture = results / "pictures" / "fox.png"
    assert stored_entry(fox).original is None
    monkeypatch.chdir(picture.parent)
    np.testing.assert_array_equal(stored_entry(fox).original, scene().layers[0])
    other = results / "other.png"
    Image.fromarray(scene(seed=1).layers[0]).save(other)
    with pytest.raises(QilError, match="is not the picture of which"):
        stored_entry(fox, [other])
    picture.write_bytes(other.read_bytes())
    assert stored_entry(fox).original is None, "a picture that was changed is no input"


def test_refusals(results, tmp_path):
    with pytest.raises(ProblemsError, match="exists"):
        main([str(results / "out"), "--out", str(results / "pictures")])
    with pytest.raises(ProblemsError, match=r"\.html"):
        main([str(results / "out"), "--out", str(tmp_path / "new.png")])
    with pytest.raises(ProblemsError, match="is one picture for 2 results"):
        main(
            [str(results / "out"), "--out", str(tmp_path / "a.html"), "--input", str(results / "pictures" / "fox.png")]
        )
    with pytest.raises(ProblemsError, match="holds no result") as error:
        result_folders([results, results / "pictures", tmp_path / "none"])
    assert len(error.value.problems) == 3
    (results / "out" / "fox" / "01_ground.png").write_bytes(b"no picture")
    with pytest.raises(QilError, match="01_ground"):
        main([str(results / "out"), "--out", str(tmp_path / "a.html")])
    assert not (tmp_path / "a.html").exists()
