"""What clients ask for, and what of it is refused."""

import pytest

from qil_jax.app.asked import asked
from qil_jax.app.limits import Limits
from qil_jax.errors import ProblemsError, QilError
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.request import JobOptions, Settings

DEFAULTS = Defaults(layers=3, resolution=64, steps=12, guidance=1.0)


def test_nothing_said_is_the_checkpoints_defaults():
    options, settings = asked({"layers": None, "prompt": "  "}, DEFAULTS, Limits())
    assert (options, settings) == (JobOptions().filled(DEFAULTS), Settings().filled(DEFAULTS))
    assert options.prompt is None and options.layers == 3 and settings.steps == 12


def test_whatever_is_said_arrives():
    said = {"layers": "4", "steps": 2.0, "guidance": 2, "seed": 5.0, "prompt": " a kite ", "exact": True, "depth": 2}
    options, settings = asked(said, DEFAULTS, Limits())
    wanted = JobOptions(layers=4, seed=5, prompt="a kite", exact=True, depth=2).filled(DEFAULTS)
    assert (options, settings) == (wanted, Settings(steps=2, guidance=2.0).filled(DEFAULTS))
    assert type(settings.steps) is int and type(options.seed) is int


def test_auto_asks_for_twice_as_many_as_usual():
    options, _ = asked({"layers": "auto"}, DEFAULTS, Limits())
    assert options.auto and options.layers == 6
    assert asked({"layers": "auto"}, Defaults(layers=15), Limits())[0].layers == 20


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layers": "21"}, "layers must be from 1 to 20, got 21"),
        ({"layers": "00000000021"}, "layers must be from 1 to 20, got 21"),
        ({"layers": "9" * 5000}, "layers must be an integer, got '999"),
        ({"guidance": 10**400}, "guidance must be a finite number, got 1000"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"layers": "many"}, "layers must be an integer, got 'many'"),
        ({"layers": [3]}, "layers must be an integer"),
        ({"steps": 101}, "steps must be from 1 to 100, got 101"),
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"steps": "12"}, "steps must be an integer, got '12'"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"guidance": {}}, "guidance must be a finite number"),
        ({"seed": -1}, "seed must be from 0 to 4294967295"),
        ({"prompt": 7}, "prompt must be text"),
        ({"prompt": "x" * 4001}, "prompt has 4001 characters, 4000 at most"),
        ({"exact": "yes"}, "exact must be True or False"),
        ({"depth": 4}, "depth must be from 1 to 3, got 4"),
    ],
)
def test_what_cannot_be_asked_for_is_named(said, message):
    with pytest.raises(ProblemsError) as caught:
        asked(said, DEFAULTS, Limits())
    assert message in str(caught.value)


def test_all_problems_are_named_together():
    with pytest.raises(ProblemsError) as caught:
        asked({"steps": 0, "seed": -1, "exact": 3}, DEFAULTS, Limits())
    assert len(caught.value.problems) == 3


def test_a_number_of_layers_may_have_leading_zeros():
    assert asked({"layers": "00000000019"}, DEFAULTS, Limits())[0].layers == 19


def test_work_is_what_all_parameters_make_together():
    asked({"layers": "20", "steps": 100}, DEFAULTS, Limits())
    asked({"depth": 3}, DEFAULTS, Limits())
    with pytest.raises(QilError, match=r"6174\.7 times.*up to 421 decompositions of 20 layers with 8 steps.*50 times"):
        asked(
            {"layers": "20", "steps": 8, "guidance": 2, "depth": 3}, Defaults(layers=1, steps=8, guidance=1.0), Limits()
        )


def test_the_works_limit_can_be_set():
    said = {"steps": 25}
    asked(said, DEFAULTS, Limits(work=3))
    with pytest.raises(QilError, match=r"2\.1 times .*1 decomposition of 3 layers with 25 steps"):
        asked(said, DEFAULTS, Limits(work=2))


def test_limits_that_allow_nothing_are_refused():
    assert Limits().problems() == []
    assert Limits(pixels=0, queue=-1).problems() == [
        "--max-pixels must be at least 1, got 0",
        "--queue must be at least 1, got -1",
    ]
    assert Limits(megabytes=64, disk=64).problems() == ["--disk-megabytes must be at least 65, got 64"]
