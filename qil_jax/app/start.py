"""From a checkpoint to the app's page, and the schema of its API."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradio import Blocks
from gradio.routes import App
from starlette.testclient import TestClient

from qil_jax.app.limits import Limits
from qil_jax.app.page import Served, build
from qil_jax.errors import QilError
from qil_jax.inference.defaults import Defaults


def loaded_page(checkpoint: Path | None, limits: Limits, folder: Path, *, examples: Sequence[Path] = ()) -> Blocks:
    """Load a checkpoint, and build the page that serves it.

    Args:
      checkpoint: its folder; None: the demonstration model that the package ships.
      limits: what a client may ask for.
      folder: folder of uploads and results.
      examples: pictures to try.

    Raises:
      QilError: if the checkpoint cannot be loaded, as `Pipeline.load` says.
    """
    from qil_jax.app.engine import Engine
    from qil_jax.compilation_cache import use_compilation_cache
    from qil_jax.inference.pipeline import Pipeline

    use_compilation_cache()
    pipeline = Pipeline.load(checkpoint)
    engine, about = Engine(pipeline, limits), pipeline.checkpoint
    served = Served(
        decompose=engine.decompose,
        defaults=about.defaults,
        captions=about.has_vision,
        limits=limits,
        folder=folder,
        examples=examples,
    )
    return build(served)


def schema(limits: Limits, folder: Path) -> dict[str, Any]:
    """The OpenAPI description of the app's calls, for a checkpoint that has the release's defaults."""
    nothing = Served(decompose=_nothing, defaults=Defaults(), captions=True, limits=limits, folder=folder)
    with TestClient(App.create_app(build(nothing))) as client:
        return client.get("/gradio_api/openapi.json").json()


def _nothing(*_: Any, **__: Any) -> Path:
    raise QilError("the page of the schema decomposes nothing; start tools/app.py without --schema")
