"""A fixture for tests that compare whole pipelines."""

import pytest


@pytest.fixture(scope="module")
def small_bucket():
    """Pictures of 160x160 instead of 640x640, for both sides: a hundredth of the attention."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_layered as theirs

    from qil_jax.inference import images, outline
    from qil_jax.inference import pipeline as pipeline_module

    patch = pytest.MonkeyPatch()
    ours_before, theirs_before = images.bucket_size, theirs.calculate_dimensions
    for module in (images, outline, pipeline_module):
        patch.setattr(module, "bucket_size", lambda w, h, r, **k: ours_before(w, h, r // 4, **k))
    patch.setattr(theirs, "calculate_dimensions", lambda area, ratio: theirs_before(area / 16, ratio))
    yield
    patch.undo()
