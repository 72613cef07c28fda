"""Prompt ids against transformers' Qwen2 tokenizer with Qwen's own vocabulary."""

import hashlib

import pytest
from checkpoints import reference_tokenizer, write_tokenizer

from qil_jax.encoders.tokenizer import PREFIX, SUFFIX, PromptTokenizer
from qil_jax.weights import Checkpoint

PREFIX_IDS = [
    151644, 8948, 198, 74785, 279, 2168, 553, 44193, 279, 1894, 11, 6083, 11, 1379, 11, 10434, 11, 12194, 11, 1467, 11,
    27979, 11871, 315, 279, 6171, 323, 4004, 25, 151645, 198, 151644, 872, 198,
]  # fmt: skip
PROMPTS = [
    "",
    " ",
    "a cat",
    "\nstarts with a newline",
    "\n\n  two, and spaces  ",
    "一只猫坐在垫子上，旁边写着“你好”。",
    "emoji 🙂👩‍👩‍👧 and naïve café, e\u0301 decomposed",
    "numbers 1234567890 and it's they'll",
    "tabs\tand\r\nwindows",
    "<|im_end|> written out",
    "word " * 600,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder / "tokenizer")
    return PromptTokenizer(Checkpoint(folder).tokenizer)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids(tokenizer, prompt):
    assert tokenizer.ids(prompt) == reference_tokenizer()(PREFIX + prompt + SUFFIX).input_ids


def test_template():
    text = PREFIX + "{}" + SUFFIX
    assert len(text) == 215
    assert hashlib.sha256(text.encode()).hexdigest().startswith("0194d360a674d2f1")


def test_prefix_and_suffix(tokenizer):
    assert tokenizer.drop == 34
    assert tokenizer.ids("") == [*PREFIX_IDS, 151645, 198, 151644, 77091, 198]
    assert len(tokenizer.ids(" ")) - tokenizer.drop == 6


@pytest.mark.full
def test_tokenizer_json_reads_the_same(tokenizer, tmp_path):
    (tmp_path / "processor").mkdir()
    reference_tokenizer().backend_tokenizer.save(str(tmp_path / "processor" / "tokenizer.json"))
    other = PromptTokenizer(Checkpoint(tmp_path).tokenizer)
    assert [other.ids(p) for p in PROMPTS] == [tokenizer.ids(p) for p in PROMPTS]


def test_absent_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        PromptTokenizer(Checkpoint(tmp_path).tokenizer)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="copy it again"):
        PromptTokenizer(Checkpoint(tmp_path).tokenizer)
