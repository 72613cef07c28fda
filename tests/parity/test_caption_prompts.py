"""The chats that ask for captions against diffusers' texts, and answers against transformers' tokenizer."""

import ast
import hashlib
import inspect

import pytest
from checkpoints import reference_tokenizer, write_tokenizer
from diffusers.modular_pipelines.qwenimage import prompt_templates
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered

from qil_jax.encoders.caption_prompts import PICTURE, CaptionLanguage, CaptionStyle, caption_chat
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.weights import Checkpoint

EN, ZH, UNBROKEN, BROKEN = *CaptionLanguage, *CaptionStyle
KNOWN = {
    (EN, UNBROKEN): (1118, 211, "bd7dcd09c0e5c08d"),
    (ZH, UNBROKEN): (446, 212, "af81658d2a4860d3"),
    (EN, BROKEN): (1119, 221, "a85971b92103913d"),
    (ZH, BROKEN): (446, 209, "15afc1eb8605221c"),
}
"""Characters, tokens and SHA-256 of each chat."""
ANSWERS = [
    "A red barn, “OPEN 24h”, in the snow. ",
    "一只猫坐在垫子上，旁边写着“你好”。",
    "naïve café, 🙂👩‍👩‍👧, e\u0301 and  two spaces\n\n- a list .",
    "<|im_start|>never<|vision_end|> shown<|im_end|><|endoftext|>",
    "",
]


@pytest.fixture(scope="module", params=["vocab.json", "tokenizer.json"])
def tokenizer(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("checkpoint")
    if request.param == "vocab.json":
        write_tokenizer(folder / "tokenizer")
    else:
        (folder / "tokenizer").mkdir()
        reference_tokenizer().backend_tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    return PromptTokenizer(Checkpoint(folder).tokenizer)


def texts_of_diffusers() -> dict[str, str]:
    """The texts that diffusers' classic pipeline assigns to its attributes."""
    tree = ast.parse(inspect.getsource(pipeline_qwenimage_layered))
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    named = {node.targets[0].attr: node.value for node in assigned if isinstance(node.targets[0], ast.Attribute)}
    return {name: value.value for name, value in named.items() if isinstance(value, ast.Constant)}


def test_chats_are_those_of_diffusers():
    classic = texts_of_diffusers()
    assert caption_chat(EN, BROKEN) == classic["image_caption_prompt_en"]
    assert caption_chat(ZH, BROKEN) == classic["image_caption_prompt_cn"]
    assert caption_chat(EN, UNBROKEN) == prompt_templates.QWENIMAGE_LAYERED_CAPTION_PROMPT_EN
    assert caption_chat(ZH, UNBROKEN) == prompt_templates.QWENIMAGE_LAYERED_CAPTION_PROMPT_CN


def test_chats_have_the_known_hashes_and_tokens(tokenizer):
    for (language, style), (characters, tokens, sha256) in KNOWN.items():
        chat = caption_chat(language, style)
        ids = tokenizer.chat_ids(chat)
        assert (len(chat), len(ids)) == (characters, tokens)
        assert hashlib.sha256(chat.encode()).hexdigest().startswith(sha256)
        assert ids == reference_tokenizer()(chat).input_ids
    start, pad, end = tokenizer.chat_ids(PICTURE)
    assert pad == tokenizer.id_of("<|image_pad|>") and ids.count(pad) == 1 and start != end
    assert tokenizer.id_of("<|no token|>") is None


def test_answers_are_decoded_as_by_transformers(tokenizer):
    reference = reference_tokenizer()
    for answer in ANSWERS:
        ids = reference(answer).input_ids
        for cut in (ids, ids[:-1]):  # half a character is one that cannot be decoded
            (wanted,) = reference.batch_decode([cut], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(cut) == wanted
    assert tokenizer.decode(reference(ANSWERS[0]).input_ids) == ANSWERS[0]
