"""What is asked for, with a checkpoint's defaults, and what of it makes a result another one."""

import dataclasses
import json
import typing

import pytest
from PIL import Image

from qil_jax.choices import Edges, OutputSize, Rescale, Split
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.request import (
    JobOptions,
    Request,
    ResolvedOptions,
    ResolvedRequest,
    ResolvedSettings,
    Settings,
    result_settings,
)
from qil_jax.layers.descriptions import LayerDescription

DEFAULTS = Defaults(layers=3, resolution=64, steps=12, guidance=1.0, output_size=OutputSize.INPUT)
IMAGE = Image.new("RGB", (64, 48))


def identity(options: JobOptions, settings: Settings, defaults: Defaults, dtype: str | None = None) -> str:
    return json.dumps(result_settings(options.filled(defaults), settings.filled(defaults), dtype))


def test_the_identity_of_results_stays():
    """Results that are there would all be made again: a change here needs a very good reason."""
    assert identity(JobOptions(), Settings(), Defaults()) == (
        '{"layers": 4, "negative_prompt": " ", "resolution": 640, "seed": 777, "output_size": "model", "steps": 50, '
        '"guidance": 4.0, "rescale": "norm", "max_prompt_tokens": 512, "dtype": null}'
    )
    options = JobOptions(
        layers=2,
        negative_prompt=None,
        resolution=1024,
        seed=5,
        samples=3,
        max_layers=40,
        prompt="a kite",
        edges=Edges.PLAIN,
        auto=True,
        exact=True,
        depth=2,
        split=Split.LARGEST,
        described=(LayerDescription(text="a kite", box=(1, 2, 3, 4)), LayerDescription()),
    )
    settings = Settings(steps=20, guidance=2.5, rescale=Rescale.NONE, max_prompt_tokens=1024)
    assert identity(options, settings, DEFAULTS, "bfloat16") == (
        '{"layers": 2, "negative_prompt": null, "resolution": 1024, "seed": 5, "output_size": "input", '
        '"edges": "plain", "auto": true, "exact": true, "depth": 2, "split": "largest", '
        '"described": [{"text": "a kite", "box": [1, 2, 3, 4]}, {"text": "", "box": null}], '
        '"steps": 20, "guidance": 2.5, "rescale": "none", "max_prompt_tokens": 1024, "dtype": "bfloat16"}'
    )
    masked = identity(JobOptions(hidden_masks=True, output_size=OutputSize.INPUT), Settings(), Defaults())
    assert '"output_size": "input", "edges": "refined", "hidden_masks": true, "steps"' in masked


@pytest.mark.parametrize(
    ("asked", "cls", "wanted"),
    [
        (Request(image=IMAGE, seed=3), ResolvedRequest, {"layers": 3, "resolution": 64, "seed": 3, "prompt": None}),
        (JobOptions(layers=5), ResolvedOptions, {"layers": 5, "resolution": 64, "output_size": OutputSize.INPUT}),
        (Settings(guidance=3.0), ResolvedSettings, {"steps": 12, "guidance": 3.0, "rescale": Rescale.NORM}),
    ],
)
def test_defaults_are_applied_once(asked, cls, wanted):
    filled = asked.filled(DEFAULTS)
    assert type(filled) is cls and {name: getattr(filled, name) for name in wanted} == wanted
    assert filled.filled(Defaults()) == filled and filled.problems() == []
    kinds = typing.get_type_hints(cls)
    shared = {field.name for field in dataclasses.fields(cls)} & {field.name for field in dataclasses.fields(Defaults)}
    assert len(shared) >= 2 and not [name for name in shared if type(None) in typing.get_args(kinds[name])]
