"""What `import qil_jax` offers, and that it costs nothing until it is asked for."""

import subprocess
import sys

import pytest

import qil_jax

LOOK = "import sys, qil_jax; print(*(m for m in sys.modules if m.split('.')[0] in ('qil_jax', 'jax', 'numpy')))"


def test_the_root_imports_nothing_until_it_is_asked():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["qil_jax"]


def test_public_names_are_those_of_their_modules():
    from qil_jax.inference.pipeline import Pipeline
    from qil_jax.inference.request import Request, Settings
    from qil_jax.layers.layered_image import LayeredImage

    assert {name: getattr(qil_jax, name) for name in qil_jax.__all__} == {
        "LayeredImage": LayeredImage,
        "Pipeline": Pipeline,
        "Request": Request,
        "Settings": Settings,
    }
    assert {*qil_jax.__all__} <= {*dir(qil_jax)}
    with pytest.raises(AttributeError, match="module 'qil_jax' has no attribute 'Pipelines'"):
        _ = qil_jax.Pipelines
