"""Reports of evaluations: a table of all samples, means beside published ones, and pictures of some samples."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from qil_jax.errors import QilError
from qil_jax.evaluation.baselines import RGBA, Baseline
from qil_jax.evaluation.layers import LEVELS, Scores, at_level, mean_scores
from qil_jax.evaluation.reconstruction import by_category, macro_average, plain_mean
from qil_jax.evaluation.samples import LayerResult
from qil_jax.files import write_whole
from qil_jax.layers.health import Health, health_rates
from qil_jax.layers.sheets import arranged, grid

PAPER_LAYERS = {
    "VLM base + Hi-SAM (paper)": (
        (0.1197, 0.1029, 0.0892, 0.0807, 0.0755, 0.0726), (0.5596, 0.6302, 0.6860, 0.7222, 0.7465, 0.7589)
    ),
    "YOLO base + Hi-SAM (paper)": (
        (0.0962, 0.0833, 0.0710, 0.0630, 0.0592, 0.0579), (0.5697, 0.6537, 0.7169, 0.7567, 0.7811, 0.7897)
    ),
    "LayerD (paper)": (
        (0.0709, 0.0541, 0.0457, 0.0419, 0.0403, 0.0396), (0.7520, 0.8111, 0.8435, 0.8564, 0.8622, 0.8650)
    ),
    "Qwen-Image-Layered-I2L (paper)": (
        (0.0594, 0.0490, 0.0393, 0.0377, 0.0364, 0.0363), (0.8705, 0.8863, 0.9105, 0.9121, 0.9156, 0.9160)
    ),
}  # fmt: skip
"""RGB L1 and alpha soft IoU on Crello for 0 to 5 merges (arXiv 2512.15603, table 1). The last is tuned on Crello."""
_UNKNOWN = (None,) * (LEVELS - 2)
NEWER_LAYERS = {
    "Qwen-Image-Layered as released, 640 (third party, read off a picture)": (
        (0.1481, *_UNKNOWN, 0.0880), (0.7131, *_UNKNOWN, 0.8672)
    ),
    "Ming-Image-0.1-Design-Layer, 1024 (its authors, read off a picture)": (
        (0.0574, *_UNKNOWN, 0.0314), (0.8923, *_UNKNOWN, 0.9424)
    ),
}  # fmt: skip
"""RGB L1 and alpha soft IoU on Crello from other sources, which give only 0 and 5 merges."""
PUBLISHED_LAYERS = {**PAPER_LAYERS, **NEWER_LAYERS}
BASELINES = {Baseline.INPUT: "the picture as every layer", Baseline.COLOURS: "k-means of colours"}
METRICS = {"l1": "RGB L1, lower is better", "iou": "Alpha soft IoU, higher is better"}
PLACES = ("best", "median", "worst")
PAPER_RECONSTRUCTION = {
    "LayerDiffuse, SDXL (paper)": {"psnr": 32.0879, "ssim": 0.9436, "lpips": 0.0418},
    "AlphaVAE, SDXL (paper)": {"psnr": 35.7446, "ssim": 0.9576, "lpips": 0.0495},
    "AlphaVAE, FLUX (paper)": {"psnr": 36.9439, "ssim": 0.9737, "lpips": 0.0283},
    "RGBA-VAE, Qwen-Image (paper)": {"psnr": 38.8252, "ssim": 0.9802, "lpips": 0.0123},
}
"""Reconstruction on AIM-500 (arXiv 2512.15603, table 3)."""


def write_layer_report(
    folder: Path,
    title: str,
    results: Sequence[LayerResult],
    show: Callable[[str], Sequence[Sequence[RGBA]]],
    settings: Mapping[str, Any],
) -> str:
    """Write samples.csv, summary.json, summary.md, and best.png, median.png, worst.png, together as report.png.

    Args:
      show: function from a sample's name to rows of pictures that show it; called for three samples.
      settings: settings of the decompositions and of the scores, which the summary lists.

    Returns:
      The text of summary.md.

    Raises:
      QilError: if there is no result.
    """
    if not results:
        raise QilError("no sample could be scored: each needs two layers or more")
    _write_table(folder / "samples.csv", [_layer_row(result) for result in results])
    groups = {"all": list(results)}
    for count in sorted({r.layers for r in results}):
        groups[f"{count} layers"] = [r for r in results if r.layers == count]
    summary = {name: _layer_summary(group) for name, group in groups.items()}
    text = _layer_text(title, summary, settings)
    published = {name: dict(zip(METRICS, rows, strict=True)) for name, rows in PUBLISHED_LAYERS.items()}
    _write_summary(folder, text, {"title": title, **settings, "groups": summary, "published on Crello": published})
    by_cost = sorted(results, key=lambda r: at_level(r.scores, 0).cost)
    chosen = [by_cost[0], by_cost[len(by_cost) // 2], by_cost[-1]]
    sheets = [grid(show(result.name)) for result in chosen]
    for place, sheet in zip(PLACES, sheets, strict=True):
        sheet.save(folder / f"{place}.png")
    arranged([[sheet] for sheet in sheets], gap=0).save(folder / "report.png")
    return text


def _layer_row(result: LayerResult) -> dict[str, Any]:
    """The row of samples.csv of one sample."""
    row: dict[str, Any] = {"name": result.name, "layers": result.layers}
    for metric in METRICS:
        row |= {f"{metric}_{k}": round(getattr(at_level(result.scores, k), metric), 5) for k in range(LEVELS)}
    row["recomposition_db"] = round(result.recomposition, 3)
    for kind, scores in result.baselines.items():
        row |= {f"{kind}_{metric}_0": round(getattr(scores[0], metric), 5) for metric in METRICS}
    faults = dataclasses.asdict(result.health)
    return row | {name: round(faults[name], 5) for name in ("empty", "duplicates", "full_canvas", "overlap")}


def _layer_summary(group: Sequence[LayerResult]) -> dict[str, Any]:
    """Means over a group of samples, as summary.json holds them."""
    return {
        "samples": len(group),
        **_levels([r.scores for r in group]),
        "recomposition_db": round(float(np.mean([r.recomposition for r in group])), 2),
        "baselines": {kind.value: _levels([r.baselines[kind] for r in group]) for kind in Baseline},
        "health": _rates([r.health for r in group]),
        "health of the truth": _rates([r.true_health for r in group]),
    }


def _levels(samples: Sequence[Sequence[Scores]]) -> dict[str, list[float]]:
    means = mean_scores(samples)
    return {metric: [round(getattr(scores, metric), 4) for scores in means] for metric in METRICS}


def _rates(stacks: Sequence[Health]) -> dict[str, float]:
    return {name: round(rate, 4) for name, rate in dataclasses.asdict(health_rates(stacks)).items()}


def _layer_text(title: str, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    head = "| | samples | " + " | ".join(f"{k} merges" for k in range(LEVELS)) + " | recomposition dB |"
    rule = "|---" * (LEVELS + 3) + "|"
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in settings.items()), ""]
    every = summary["all"]
    for place, (metric, heading) in enumerate(METRICS.items()):
        lines += [f"## {heading}", "", head, rule]
        for name, group in summary.items():
            lines.append(_line(name, group["samples"], *group[metric], f"{group['recomposition_db']:.2f}"))
        for kind, name in BASELINES.items():
            lines.append(_line(name, every["samples"], *every["baselines"][kind][metric], ""))
        for name, rows in PUBLISHED_LAYERS.items():
            lines.append(_line(f"{name}, on Crello", "", *rows[place], ""))
        lines.append("")
    lines += [
        "Rows on Crello compare with runs on Crello alone. An empty cell is not known.",
        "",
    ]
    rates = every["health"]
    lines += ["## Health of the layers above the bottom one", "", "| | " + " | ".join(_spaced(n) for n in rates) + " |"]
    lines += ["|---" * (len(rates) + 1) + "|", _line("made", *rates.values())]
    lines += [_line("truth", *every["health of the truth"].values()), ""]
    return "\n".join(lines)


def _line(*cells: Any) -> str:
    """A row of a Markdown table; floats have four places, None is an empty cell."""
    shown = ["" if x is None else f"{x:.4f}" if isinstance(x, float) else str(x) for x in cells]
    return f"| {' | '.join(shown)} |"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def write_reconstruction_report(
    folder: Path,
    title: str,
    rows: Sequence[tuple[str, str, Mapping[str, float]]],
    settings: Mapping[str, Any],
    frechet: Mapping[str, float] | None = None,
) -> str:
    """Write samples.csv of (name, category, scores), summary.json and summary.md, whose text is returned.

    Args:
      rows: name, category and scores of each picture.
      settings: settings of the reconstructions and of the scores, which the summary lists.
      frechet: Frechet distance of each category; None if it was not measured.

    Raises:
      QilError: if there is no row.
    """
    if not rows:
        raise QilError("no picture could be scored: the records have no layers that show anything")
    _write_table(
        folder / "samples.csv", [{"name": name, "category": category, **scores} for name, category, scores in rows]
    )
    unnamed = [(category, scores) for _, category, scores in rows]
    categories = {name: plain_mean(scores) for name, scores in by_category(unnamed).items()}
    means = {"macro average": macro_average(unnamed), "plain mean": plain_mean([scores for _, scores in unnamed])}
    means |= categories
    if frechet:
        for name, distance in frechet.items():
            categories[name]["frechet"] = distance
        if frechet.keys() == categories.keys():
            means["macro average"]["frechet"] = float(np.mean(list(frechet.values())))
    metrics = list(dict.fromkeys(metric for mean in means.values() for metric in mean))
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in settings.items()), ""]
    lines += ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    published = {f"{name}, on AIM-500": values for name, values in PAPER_RECONSTRUCTION.items()}
    for name, values in {**means, **published}.items():
        lines.append(_line(name, *(values.get(metric) for metric in metrics)))
    text = "\n".join(lines) + "\n"
    _write_summary(folder, text, {"title": title, **settings, **means})
    return text


def _write_summary(folder: Path, text: str, values: Mapping[str, Any]) -> None:
    write_whole(epath.Path(folder) / "summary.md", text.encode(errors="backslashreplace"))
    write_whole(epath.Path(folder) / "summary.json", (json.dumps(values, indent=2) + "\n").encode())


def _write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    write_whole(epath.Path(file), stream.getvalue().encode(errors="backslashreplace"))
