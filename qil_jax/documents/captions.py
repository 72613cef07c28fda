"""Captions of composites: from sidecars of the documents, an OpenAI-compatible server, or a checkpoint's own model."""

import base64
import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import openai
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.documents.sidecars import document_text
from qil_jax.files import write_whole
from qil_jax.layers.compositing import over_white
from qil_jax.layers.sheets import png_bytes

PROMPT = """\
# Image Annotator
You are a professional image annotator. Write one caption of this image in natural language: its layout, its
objects with their attributes and relations, its style, and every text in it, quoted word for word."""


@runtime_checkable
class Captioner(Protocol):
    """Describes the composite of a document in a caption.

    Args:
      picture: the composite, straight RGBA.
      document: path of the document.

    Raises:
      Dropped: if this document gets no caption.
    """

    def __call__(self, picture: UInt8[np.ndarray, "y x 4"], document: str) -> str:
        """The caption of a document."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SidecarCaptioner:
    """Reads the caption of `poster.psd` from `poster.txt`.

    Attributes:
      otherwise: caption used for a document without such a file.
    """

    otherwise: str = ""

    def __call__(self, picture: UInt8[np.ndarray, "y x 4"], document: str) -> str:
        """The caption beside a document, or `otherwise`."""
        text = document_text(document, ".txt")
        return self.otherwise if text is None else text.strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Settings of the captioning server and of the requests sent to it.

    Attributes:
      url: address of the server, such as "http://localhost:8000/v1" (vLLM: `vllm serve Qwen/Qwen2.5-VL-7B-Instruct`).
      model: name of the model on the server.
      key: API key, for servers that require one.
      prompt: instruction sent with each image.
      side: maximum length in pixels of an image's longer side; larger images are reduced before they are sent.
      tokens: maximum number of tokens in an answer.
      timeout: time limit of one request, in seconds.
      retries: number of attempts after a refusal, a time-out or a broken connection, with growing pauses or those that
        the server asks for.
      requests_per_minute: maximum number of requests that this process sends in a minute.
    """

    url: str
    model: str
    key: str = "none"
    prompt: str = PROMPT
    side: int = 1024
    tokens: int = 512
    timeout: float = 120.0
    retries: int = 6
    requests_per_minute: float = 600.0


class EndpointCaptioner:
    """Captions images with a vision-language chat model; answers are cached in the folder `cache`."""

    def __init__(self, config: EndpointConfig, cache: epath.Path):
        self.config, self.cache = config, cache
        self._client: openai.OpenAI | None = None
        self._turn, self._next = threading.Lock(), 0.0

    def __call__(self, picture: UInt8[np.ndarray, "y x 4"], document: str) -> str:
        """The caption that the model gives, or gave before."""
        image = Image.fromarray(over_white(picture)[..., :3])
        png = png_bytes(image, self.config.side, Image.Resampling.LANCZOS)
        asked = f"{self.config.model}\n{self.config.prompt}\n".encode() + png
        file = _kept(self.cache, asked)
        if file.exists():
            return file.read_text()
        answer = self._ask(png)
        write_whole(file, answer.encode())
        return answer

    def _ask(self, png: bytes) -> str:
        if self._client is None:
            self._client = openai.OpenAI(
                base_url=self.config.url,
                api_key=self.config.key,
                timeout=self.config.timeout,
                max_retries=self.config.retries,
            )
        self._wait()
        picture = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": self.config.prompt},
        ]
        try:
            reply = self._client.chat.completions.create(
                model=self.config.model,
                messages=[{"role": "user", "content": content}],  # pyright: ignore[reportArgumentType]
                max_tokens=self.config.tokens,
                temperature=0.0,
            )
        except openai.OpenAIError as error:
            raise Dropped(Reason.CAPTION_FAILED, f"{self.config.url}: {type(error).__name__}: {error}"[:300]) from error
        text = (reply.choices[0].message.content or "").strip() if reply.choices else ""
        if not text:
            raise Dropped(Reason.CAPTION_FAILED, f"{self.config.url} answered nothing")
        return text

    def _wait(self) -> None:
        """Sleep until the rate limit, which all threads share, permits the next request."""
        with self._turn:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + 60 / self.config.requests_per_minute
        time.sleep(start - now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCaptioner:
    """Captions that `write` has put into the folder `cache`: one process holds the model, and all workers read files.

    Attributes:
      asked: text that identifies all but the picture that determines a caption: the checkpoint and the question.
      cache: folder of the captions.
    """

    asked: str
    cache: epath.Path

    def __call__(self, picture: UInt8[np.ndarray, "y x 4"], document: str) -> str:
        """The caption that `write` kept."""
        file = self._file(picture)
        text = file.read_text() if file.exists() else ""
        if not text:
            raise Dropped(Reason.CAPTION_FAILED, "the model wrote nothing, or cannot be shown a picture of this shape")
        return text

    def write(
        self,
        pictures: Iterable[UInt8[np.ndarray, "y x 4"]],
        describe: Callable[[list[UInt8[np.ndarray, "y x 4"]]], list[str]],
        *,
        batch: int,
    ) -> Iterator[int]:
        """Caption pictures that have no caption yet, in batches, and keep each batch; yields how many were looked at.

        Args:
          pictures: composites, straight RGBA, of which at most a batch is held.
          describe: the model, from pictures to captions; an empty one is kept, too.
          batch: number of pictures at once.
        """
        waiting: dict[epath.Path, np.ndarray] = {}
        count = 0
        for count, picture in enumerate(pictures, start=1):
            file = self._file(picture)
            if not file.exists():
                waiting[file] = picture
            if len(waiting) == batch:
                _answer(waiting, describe)
                yield count
        if waiting:
            _answer(waiting, describe)
        yield count

    def _file(self, picture: np.ndarray) -> epath.Path:
        asked = f"{self.asked}\n{picture.shape}\n".encode() + np.ascontiguousarray(picture).tobytes()
        return _kept(self.cache, asked)


def _answer(waiting: dict[epath.Path, np.ndarray], describe: Callable[[list[np.ndarray]], list[str]]) -> None:
    """Describe the pictures, and write what is said of each to its file."""
    for file, text in zip(waiting, describe(list(waiting.values())), strict=True):
        write_whole(file, text.encode())
    waiting.clear()


def _kept(cache: epath.Path, asked: bytes) -> epath.Path:
    """The file of the answer to a question."""
    return cache / f"{hashlib.sha256(asked).hexdigest()}.txt"
