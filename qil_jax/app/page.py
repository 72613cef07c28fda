"""The app's page: what is asked, what is shown, and the API that the page itself calls."""

import dataclasses
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import Error
from gradio.context import LocalContext
from gradio.data_classes import ImageData
from pydantic import ValidationError

from qil_jax.app.asked import asked
from qil_jax.app.calls import DECOMPOSE, Calls
from qil_jax.app.limits import MOST_DEPTH, MOST_STEPS, Limits
from qil_jax.app.look import MENDED, WAITING
from qil_jax.app.results import FORMATS, downloads, framed_viewer, summary
from qil_jax.app.storage import Storage
from qil_jax.app.streams import Streams
from qil_jax.choices import AUTO, MAX_LAYERS, MAX_SEED
from qil_jax.errors import QilError
from qil_jax.export.format import Format
from qil_jax.export.manifest import RECORD
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.request import ResolvedOptions, ResolvedSettings

TITLE = "Pictures into layers"
FAULT = "The server made a mistake, which is not yours. It is in the server's log; please tell who runs it."
QUIETLY: dict[str, Any] = {"duration": None, "print_exception": False}
"""How errors of clients are told: until they are closed, and not in the server's log."""
DOWNLOADS = (Format.ZIP.value, Format.PSD.value)
"""What is made for download unless a client says otherwise."""
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What the page serves.

    Attributes:
      decompose: the method of an `Engine`.
      defaults: the checkpoint's defaults, and the line that describes it.
      captions: whether the checkpoint writes the prompt where there is none.
      limits: what a client may ask for.
      storage: the folder of uploads and results.
      streams: the answers that clients listen to.
      examples: pictures to try.
    """

    decompose: Callable[..., Path]
    defaults: Defaults
    captions: bool
    limits: Limits
    storage: Storage
    streams: Streams = dataclasses.field(default_factory=Streams)
    examples: Sequence[Path] = ()


def build(served: Served) -> gr.Blocks:
    """The page; its calls `decompose` and `cancel` are the app's API."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{served.defaults.about}")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                inputs, run, cancel = _question(served)
            with gr.Column(scale=3, min_width=320):
                viewer = gr.HTML(WAITING, label="Viewer", elem_id="viewer", padding=False)
                said = gr.Markdown(label="said", elem_id="said")
                files = gr.File(label="Downloads", file_count="multiple", interactive=False, elem_id="files")
                prompt = gr.Textbox(label="Prompt that was used", interactive=False)
                record = gr.JSON(label="Record of the result", elem_id="record", max_height=300)
        result = gr.State()
        outputs = [said, prompt, files, record, result]
        page.load(js=MENDED)
        _connect(served, (inputs, run, cancel), outputs, viewer)
    return page


def _question(served: Served) -> tuple[dict[str, Any], gr.Button, gr.Button]:
    """The components of a call by the names of its parameters, and the buttons that start and end it."""
    defaults, limits = served.defaults, served.limits
    given = "the model describes the picture" if served.captions else "an empty prompt, for this model cannot caption"
    taken = f"Drop a picture, or click here:\nat most {limits.megabytes} MB and {limits.pixels / 1e6:g} million pixels"
    picture = gr.Image(label="Picture", placeholder=taken, sources=["upload", "clipboard"], type="filepath", height=300)
    if served.examples:
        files = [[str(file)] for file in served.examples]
        gr.Examples(files, inputs=[picture], cache_examples=False, api_visibility="private")
    prompt = gr.Textbox("", label="Prompt", info=f"What the picture shows. Empty: {given}.", lines=2)
    with gr.Row():
        numbers = [AUTO, *map(str, range(1, MAX_LAYERS + 1))]
        auto = "auto drops superfluous ones"
        layers = gr.Dropdown(numbers, value=str(defaults.layers), label="Layers", info=auto, min_width=120)
        seed = gr.Number(777, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120)
    with gr.Row():
        run = gr.Button("Decompose", variant="primary", min_width=100)
        cancel = gr.Button("Cancel", min_width=100)
    with gr.Accordion("More settings", open=False):
        steps = gr.Slider(1, MOST_STEPS, defaults.steps, step=1, label="Steps")
        guidance = gr.Slider(1, 10, defaults.guidance, step=0.5, label="Guidance", info="1 switches it off")
        depth = gr.Slider(1, MOST_DEPTH, 1, step=1, label="Depth", info="2 decomposes the layers once more")
        exact = gr.Checkbox(False, label="Exact", info="adjust colours so that the layers blend to the picture")
        formats = gr.CheckboxGroup([*map(str, FORMATS)], value=list(DOWNLOADS), label="Downloads")
    names = ("picture", "layers", "steps", "guidance", "seed", "prompt", "exact", "depth", "formats")
    found = (picture, layers, steps, guidance, seed, prompt, exact, depth, formats)
    return dict(zip(names, found, strict=True)), run, cancel


def _connect(served: Served, asking: tuple[dict[str, Any], gr.Button, gr.Button], outputs: list[Any], viewer: gr.HTML):
    inputs, run, cancel = asking
    said, result = outputs[0], outputs[-1]

    def decompose(progress: gr.Progress = gr.Progress(), **values: Any) -> tuple[Any, ...]:  # noqa: B008
        """Decompose a picture into RGBA layers.

        Returns a summary, the prompt that was used, the files that were asked for, and the result's record.
        """
        with answered():
            return _decomposed(served, values, progress)

    def show(made: tuple[str, str] | None) -> str:
        with answered():
            if made is None:
                raise QilError("there are no layers to show: decompose a picture first")
            return framed_viewer(*map(Path, made))

    started = run.click(
        decompose,
        inputs_kwargs=inputs,
        outputs=outputs,
        api_name=DECOMPOSE,
        preprocess=False,
        show_progress_on=viewer,
        concurrency_limit=1,
    )
    started.success(show, result, viewer, api_visibility="private", show_progress="hidden")
    cancel.click(lambda: "Stopped.", None, said, cancels=[started], queue=False, api_visibility="private")


def checked(served: Served, values: Mapping[str, Any]) -> tuple[Path, ResolvedOptions, ResolvedSettings]:
    """The upload, the options and the settings of a call.

    Args:
      served: what the page serves.
      values: values by the names of the call's parameters; defaults stand for those that are missing.

    Raises:
      QilError: if they are not what a client may ask for.
    """
    values = dict(values)
    picture, formats = values.pop("picture", None), values.pop("formats", DOWNLOADS)
    if picture is None or (isinstance(picture, dict) and picture.get("path") is None):
        raise QilError("there is no picture: upload one first, and give what the upload returned as `picture`")
    try:
        upload = ImageData.model_validate(picture)
    except ValidationError as error:
        message = f"picture must be what the upload of a file returned, got {picture!r:.80}: see docs/app.md"
        raise QilError(message) from error
    options, settings = asked(values, served.defaults, served.limits)
    return Path(upload.path or ""), dataclasses.replace(options, exports=_formats(formats)), settings


def _decomposed(served: Served, values: dict[str, Any], progress: gr.Progress) -> tuple[Any, ...]:
    """The outputs of a call."""
    upload, options, settings = checked(served, values)
    jobs = 0

    def on_step(done: int, steps: int) -> None:
        nonlocal jobs
        jobs += done == 1
        again = "" if jobs == 1 else f", decomposition {jobs}"
        progress((done, steps), desc=f"Step {done} of {steps}{again}")

    progress(None, desc="Preparing")
    folder = served.storage.folder / secrets.token_urlsafe(24)
    with served.storage.holding(folder):
        result = served.decompose(
            upload, folder, options, settings, on_step=on_step, is_wanted=lambda: _is_wanted(served.streams)
        )
    record = json.loads((result / RECORD).read_text(encoding="utf-8"))
    prompt, files = record["settings"]["prompt"], [str(file) for file in downloads(result, options.exports)]
    empty = "" if prompt else " The prompt was empty: this model cannot caption."
    return summary(record) + empty, prompt, files, record, (str(result), str(upload))


def _formats(asked: Any) -> tuple[Format, ...]:
    if not isinstance(asked, list | tuple) or any(format not in FORMATS for format in asked):
        raise QilError(f"formats must be a list of {', '.join(FORMATS)}, got {asked!r}")
    return tuple(dict.fromkeys(map(Format, asked)))


def _is_wanted(streams: Streams) -> bool:
    """Whether a client waits for the call that this thread works on."""
    page, call = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    return page is None or call is None or Calls(page, streams).is_wanted(call)


@contextmanager
def answered() -> Iterator[None]:
    """Turn unusable input into its message, and faults into a general one; tracebacks stay in the server's log.

    Raises:
      Error: the message for the client.
    """
    try:
        yield
    except QilError as error:
        raise Error(str(error), **QUIETLY) from error
    except Exception:
        LOG.exception("a call failed")
        raise Error(FAULT, **QUIETLY) from None
