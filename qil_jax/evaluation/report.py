"""A protocol's result as files: every sample in a table, the means beside the paper's, and pictures of some samples."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from qil_jax.data.files import write_whole
from qil_jax.data.sheets import grid
from qil_jax.evaluation.layers import LEVELS, Scores, at_level, mean_scores

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
"""RGB L1 and alpha soft IoU on Crello for 0 to 5 merges (paper.md 5.1). The last was fine-tuned on Crello."""
PAPER_RECONSTRUCTION = {
    "LayerDiffuse, SDXL (paper)": {"psnr": 32.0879, "ssim": 0.9436, "lpips": 0.0418},
    "AlphaVAE, SDXL (paper)": {"psnr": 35.7446, "ssim": 0.9576, "lpips": 0.0495},
    "AlphaVAE, FLUX (paper)": {"psnr": 36.9439, "ssim": 0.9737, "lpips": 0.0283},
    "RGBA-VAE, Qwen-Image (paper)": {"psnr": 38.8252, "ssim": 0.9802, "lpips": 0.0123},
}
"""On AIM-500 (paper.md 1.5)."""
Picture = UInt8[np.ndarray, "y x 4"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerResult:
    """One scored decomposition.

    Attributes:
      layers: how many the truth has.
      scores: after 0, 1, ... merges.
      recomposition: dB of the blended layers against the picture.
      truth, made: the picture with its layers, and what was made of it, as rows of pictures.
    """

    name: str
    layers: int
    scores: Sequence[Scores]
    recomposition: float
    truth: Sequence[Picture]
    made: Sequence[Picture]


def write_layer_report(folder: Path, title: str, results: Sequence[LayerResult], facts: Mapping[str, Any]) -> str:
    """Write samples.csv, summary.json, summary.md and best, median and worst as pictures.

    Args:
      facts: how it was measured, for the summary.

    Returns:
      the text of summary.md.

    Raises:
      ValueError: if there is no result.
    """
    if not results:
        raise ValueError("no sample could be scored: each needs two layers or more")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"name": r.name, "layers": r.layers, "recomposition_db": round(r.recomposition, 3)}
        | {f"l1_{k}": round(at_level(r.scores, k).l1, 5) for k in range(LEVELS)}
        | {f"iou_{k}": round(at_level(r.scores, k).iou, 5) for k in range(LEVELS)}
        for r in results
    ]
    _write_table(folder / "samples.csv", rows)
    groups = {"all": list(results)}
    for count in sorted({r.layers for r in results}):
        groups[f"{count} layers"] = [r for r in results if r.layers == count]
    summary = {
        name: {
            "samples": len(group),
            "l1": [round(s.l1, 4) for s in mean_scores([r.scores for r in group])],
            "iou": [round(s.iou, 4) for s in mean_scores([r.scores for r in group])],
            "recomposition_db": round(float(np.mean([r.recomposition for r in group])), 2),
        }
        for name, group in groups.items()
    }
    text = _layer_text(title, summary, facts)
    _write_summary(folder, text, {"title": title, **facts, "groups": summary})
    by_cost = sorted(results, key=lambda r: at_level(r.scores, 0).cost)
    for place, result in {"best": 0, "median": len(by_cost) // 2, "worst": -1}.items():
        chosen = by_cost[result]
        grid([chosen.truth, chosen.made]).save(folder / f"{place}.png")
    return text


def _layer_text(title: str, summary: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    told = [f"{name}: {value}" for name, value in facts.items()]
    head = "| | samples | " + " | ".join(f"{k} merges" for k in range(LEVELS)) + " | recomposition dB |"
    rule = "|---" * (LEVELS + 3) + "|"
    lines = [f"# {title}", "", *(f"- {line}" for line in told), ""]
    for metric, heading, place in (
        ("l1", "RGB L1, lower is better", 0),
        ("iou", "Alpha soft IoU, higher is better", 1),
    ):
        lines += [f"## {heading}", "", head, rule]
        for name, group in summary.items():
            values = " | ".join(f"{value:.4f}" for value in group[metric])
            lines.append(f"| {name} | {group['samples']} | {values} | {group['recomposition_db']:.2f} |")
        for name, rows in PAPER_LAYERS.items():
            lines.append(f"| {name}, on Crello | | " + " | ".join(f"{value:.4f}" for value in rows[place]) + " | |")
        lines.append("")
    return "\n".join(lines)


def write_reconstruction_report(
    folder: Path,
    title: str,
    rows: Sequence[tuple[str, str, Mapping[str, float]]],
    mean: Mapping[str, float],
    facts: Mapping[str, Any],
) -> str:
    """Write samples.csv of (name, category, scores), summary.json and summary.md, whose text is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(
        folder / "samples.csv", [{"name": name, "category": category, **scores} for name, category, scores in rows]
    )
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["| | " + " | ".join(mean) + " |", "|---" * (len(mean) + 1) + "|"]
    for name, values in {"this": mean, **PAPER_RECONSTRUCTION}.items():
        shown = [f"{values[metric]:.4f}" if metric in values else "" for metric in mean]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    text = "\n".join(lines) + "\n"
    _write_summary(folder, text, {"title": title, **facts, "mean": dict(mean)})
    return text


def _write_summary(folder: Path, text: str, values: Mapping[str, Any]) -> None:
    write_whole(epath.Path(folder) / "summary.md", text.encode())
    write_whole(epath.Path(folder) / "summary.json", (json.dumps(values, indent=2) + "\n").encode())


def _write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
