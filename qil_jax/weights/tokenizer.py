"""Reading and checks of the checkpoint's tokenizer files (docs/specification.md, 5)."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from qil_jax.weights.strict import COPY, WeightsError, read_json

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The regular expression by which Qwen2 splits text into words before merging bytes."""
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
"""The tokens that begin and end a message in the prompt template."""


def read_tokenizer(checkpoint: Path) -> Tokenizer:
    """Read tokenizer.json, or vocab.json and merges.txt, from CHECKPOINT/tokenizer or CHECKPOINT/processor.

    Added tokens come from added_tokens.json, or from tokenizer_config.json if that file is absent.

    Raises:
      FileNotFoundError: if neither folder holds a tokenizer.
      WeightsError: if the files cannot be read as a tokenizer, or bytes of the alphabet, merges of tokens, or tokens of
        the prompt template are missing.
    """
    for folder in (checkpoint / "tokenizer", checkpoint / "processor"):
        whole, parts = folder / "tokenizer.json", [folder / "vocab.json", folder / "merges.txt"]
        if whole.is_file():
            return _from_json(whole)
        if all(part.is_file() for part in parts):
            return _from_vocabulary(folder)
    raise FileNotFoundError(
        f"{checkpoint}/tokenizer: needs tokenizer.json, or vocab.json and merges.txt; copy them from the release"
    )


def tokenizer_problems(tokenizer: Tokenizer, folder: Path, rows: int | None) -> list[str]:
    """The problems of a checkpoint's tokenizer beside its text encoder.

    Args:
      tokenizer: what was read of the folder.
      folder: folder of the tokenizer, for the message.
      rows: number of rows of the text encoder's embedding; None if it is unknown.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if rows is not None and largest >= rows:
        return [f"{folder}: has ids up to {largest}, the text encoder's vocab_size is {rows}"]
    return []


def _from_json(file: Path) -> Tokenizer:
    model = read_json(file, fix=COPY).get("model")
    tokenizer = _built(lambda: Tokenizer.from_file(str(file)), file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.decoder = decoders.ByteLevel()
    if not isinstance(model, dict) or not isinstance(tokenizer.model, models.BPE):
        raise WeightsError([f"{file}: is no byte-pair tokenizer; {COPY}"])
    made = None
    if not model.get("ignore_merges"):
        made = {pair.replace(" ", "") if isinstance(pair, str) else "".join(pair) for pair in model["merges"]}
    _require_whole(tokenizer, model["vocab"], made, file)
    return tokenizer


def _from_vocabulary(folder: Path) -> Tokenizer:
    file, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary = read_json(file, fix=COPY)
    tokenizer = _built(lambda: Tokenizer(models.BPE.from_file(str(file), str(merges))), folder)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = _added(folder)
    tokens = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    wrong = [token for token in tokens if tokenizer.token_to_id(token) != special[token]]
    if wrong:
        raise WeightsError([f"{folder}: ids of {', '.join(wrong)} do not follow on from vocab.json; {COPY}"])
    lines = merges.read_text(encoding="utf-8").split("\n")
    _require_whole(tokenizer, vocabulary, {line.replace(" ", "") for line in lines}, merges)
    return tokenizer


def _added(folder: Path) -> dict[str, int]:
    """The ids of the added tokens, which are not in the vocabulary."""
    added, config = folder / "added_tokens.json", folder / "tokenizer_config.json"
    if added.is_file():
        ids = [*read_json(added, fix=COPY).items()]
    else:
        decoder = (read_json(config, fix=COPY) if config.is_file() else {}).get("added_tokens_decoder", {})
        whole = isinstance(decoder, dict) and all(
            isinstance(token, dict) and key.isdecimal() and len(key) < 10 for key, token in decoder.items()
        )
        if not whole:
            raise WeightsError([f"{config}: added_tokens_decoder must be objects by id; {COPY}"])
        ids = [(token.get("content"), int(key)) for key, token in decoder.items()]
    if not all(isinstance(k, str) and k and isinstance(v, int) and not isinstance(v, bool) for k, v in ids):
        raise WeightsError([f"{added if added.is_file() else config}: must give tokens their ids; {COPY}"])
    return dict(ids)


def _built(build: Callable[[], Tokenizer], where: Path) -> Tokenizer:
    try:
        return build()
    except BaseException as error:  # the tokenizers library raises bare exceptions, and panics that are none
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise WeightsError([f"{where}: cannot be read as a tokenizer ({error}); {COPY}"]) from error


def _require_whole(tokenizer: Tokenizer, vocabulary: Mapping[str, int], made: set[str] | None, where: Path) -> None:
    """Raise a WeightsError if the vocabulary, the merges or the tokens of the prompt template are incomplete.

    Args:
      made: tokens that result from merges; None if tokens need no merges.
    """
    problems = []
    lost = set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()
    if lost:
        problems.append(f"{where}: the vocabulary ({len(vocabulary)} tokens) lacks {len(lost)} of 256 bytes; {COPY}")
    if made is not None:
        made |= {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        unmade = sum(len(token) > 1 and token not in made for token in vocabulary)
        if unmade:
            problems.append(f"{where}: no merges make {unmade} of {len(vocabulary)} tokens; cut short? {COPY}")
    lacking = [token for token in CHAT_TOKENS if tokenizer.token_to_id(token) is None]
    if lacking:
        problems.append(f"{where}: has no token {' or '.join(lacking)}; copy the whole folder from the release")
    if problems:
        raise WeightsError(problems)
