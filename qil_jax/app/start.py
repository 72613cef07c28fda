"""From a checkpoint to the app's page, and the schema of its API."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradio.routes import App
from starlette.testclient import TestClient

from qil_jax.app.limits import Limits
from qil_jax.app.page import Served, build
from qil_jax.app.storage import Storage
from qil_jax.errors import QilError
from qil_jax.inference.defaults import Defaults
from qil_jax.programs import called


def loaded(checkpoint: Path | None, limits: Limits, folder: Path, *, examples: Sequence[Path] = ()) -> Served:
    """Load a checkpoint for the page.

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
    return Served(
        decompose=engine.decompose,
        defaults=about.defaults,
        captions=about.has_vision,
        limits=limits,
        storage=storage(folder, limits),
        examples=examples,
    )


def storage(folder: Path, limits: Limits) -> Storage:
    """A folder of uploads and results within the limits."""
    return Storage(folder, most=limits.disk * 2**20, seconds=60.0 * limits.minutes)


def schema(limits: Limits, folder: Path) -> dict[str, Any]:
    """The OpenAPI description of the app's calls, for a checkpoint that has the release's defaults."""
    nothing = Served(
        decompose=_nothing, defaults=Defaults(), captions=True, limits=limits, storage=storage(folder, limits)
    )
    with TestClient(App.create_app(build(nothing))) as client:
        return client.get("/gradio_api/openapi.json").json()


def _nothing(*_: Any, **__: Any) -> Path:
    raise QilError(f"the page of the schema decomposes nothing; start {called('app')} without --schema")
