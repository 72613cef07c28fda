"""Metrics at Weights & Biases, for which a module that notes its calls stands, and refusals of them."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from runs import QuickRuns

from qil_jax.errors import QilError
from qil_jax.training.sinks import WandbSink


class Wandb(types.ModuleType):
    """The module `wandb` as far as it is used: `init`, and `log` and `finish` of a run."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.opened: list[dict[str, Any]] = []
        self.logged: list[list[tuple[int, dict[str, float]]]] = []
        self.finished = 0
        self.fault: Exception | None = None

    def init(self, **settings: Any) -> "Wandb":
        if self.fault is not None:
            raise self.fault
        self.opened.append(settings)
        self.logged.append([])
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.logged[-1].append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    """What `import wandb` gives."""
    module = Wandb()
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def lines(run: Path) -> list[tuple[int, dict[str, float]]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line.pop("step"), line) for line in found]


def rounded(logged: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(step, {name: round(value, 8) for name, value in values.items()}) for step, values in logged]


@pytest.mark.full
def test_the_same_numbers_go_there_and_a_run_goes_on_as_itself(quick: QuickRuns, wandb: Wandb, tmp_path, capsys):
    run = tmp_path / "run"
    changes = {"steps": 4, "checkpoints.every": 2}
    assert quick.main(run, changes, "--wandb", "layers") == 0
    assert rounded(wandb.logged[0]) == lines(run)
    assert [step for step, _ in wandb.logged[0]] == [1, 2, 3, 4] and wandb.finished == 1
    first = wandb.opened[0]
    assert first["project"] == "layers" and first["name"] == "run" and first["resume"] == "allow"
    assert first["config"]["steps"] == 4 and first["config"]["stage"] == "stage1_text_to_rgba"
    assert json.loads((run / "wandb.json").read_text()) == {"layers": first["id"]}
    (run / "checkpoints" / "4").rename(tmp_path / "lost")  # as if killed before it was saved
    assert quick.main(run, changes, "--wandb", "layers") == 0
    assert wandb.opened[1]["id"] == first["id"]
    assert [step for step, _ in wandb.logged[1]] == [3, 4]
    assert rounded(wandb.logged[1]) == lines(run)[2:]
    assert quick.main(run, changes, "--wandb", "other") == 0
    assert wandb.opened[2]["id"] != first["id"] and set(json.loads((run / "wandb.json").read_text())) == {
        "layers",
        "other",
    }


@pytest.mark.full
def test_without_the_option_nothing_goes_there(quick: QuickRuns, wandb: Wandb, tmp_path):
    assert quick.main(tmp_path / "run") == 0
    assert wandb.opened == [] and not (tmp_path / "run" / "wandb.json").exists()


def test_a_run_that_cannot_be_opened_is_refused(quick: QuickRuns, wandb: Wandb, tmp_path, capsys):
    wandb.fault = RuntimeError("api_key not configured (no-tty)")
    assert quick.main(tmp_path / "run", {}, "--wandb", "layers") == 2
    assert "error: --wandb layers: api_key not configured (no-tty): call `wandb login`" in capsys.readouterr().err


def test_ids_that_cannot_be_read(wandb: Wandb, tmp_path):
    (tmp_path / "wandb.json").write_text("{")
    with pytest.raises(QilError, match=r"wandb.json: is not JSON .*remove it to begin a new run there"):
        WandbSink("layers", tmp_path, {})
