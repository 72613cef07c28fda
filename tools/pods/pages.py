"""docs/pods.md: tables between marks, from the results in docs/pods.json."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from qil_jax.errors import QilError, complain
from qil_jax.mesh import MeshError
from qil_jax.planning.cache import Results
from qil_jax.planning.chips import CHIPS, GIB, Topology
from qil_jax.planning.inference import InferencePlan, name_of
from qil_jax.planning.report import mesh_text
from qil_jax.planning.result import Result
from tools.pods import programs

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "pods.md", ROOT / "docs" / "pods.json"
BEST = 5
"""Number of meshes of a slice that the table of meshes shows."""
STEPS = 50


def write_page(*, only: str = "") -> None:
    """Compile the programs that are new or changed, keep their results, and write the tables.

    Args:
      only: text that the names of the programs contain that are compiled; the other results stay as they are.

    Raises:
      QilError: if the compiler is missing, a program does not fit its mesh, or the page lacks a mark.
    """
    kept, wanted = Results(RESULTS), programs.programs()
    for number, (name, make) in enumerate(wanted.items(), start=1):
        if only in name:
            complain(f"{number}/{len(wanted)} {name}")
            try:
                make(kept)
            except MeshError as error:
                complain(f"  left out: {'; '.join(error.problems)}")
    if not only:
        kept.keep(wanted)
    PAGE.write_text(page(), encoding="utf-8")


def check_page() -> None:
    """Raises QilError if the page does not hold the tables of docs/pods.json."""
    if PAGE.read_text(encoding="utf-8") != page():
        raise QilError(f"docs/{PAGE.name} does not hold the figures of docs/{RESULTS.name}: {FIX}")


FIX = "run python tools/pods"


def page() -> str:
    """The text of the page with the tables of docs/pods.json.

    Raises:
      QilError: if the page lacks the marks between which a table stands.
    """
    kept, text = Results(RESULTS), PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise QilError(f"{PAGE}: the marks {begin} and {end} are missing: put them where the table shall stand")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table(kept)}\n{end}{after}"
    return text


def sizes_table(kept: Results) -> str:
    """Memory and bound of a denoise step by layers and resolution on each slice."""
    columns = ["layers", "resolution"]
    for topology, (mesh, _) in programs.MESHES.items():
        axes = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(mesh).items() if v > 1)
        columns.append(f"{topology} ({axes}): GiB a device; {STEPS} steps at least")
    plans = list(programs.sizes())
    rows = []
    for resolution in programs.RESOLUTIONS:
        for layers in programs.LAYERS:
            of = [plan for plan in plans if (plan.layers, plan.resolution) == (layers, resolution)]
            rows.append([str(layers), str(resolution), *(_size_and_time(_of(kept, plan)) for plan in of)])
    return _table(columns, rows)


def smallest_table(kept: Results) -> str:
    """The least slices."""
    columns = ["slice", "program", "arguments", "temporaries", "beside it", "of", "fits, to spare"]
    rows = []
    for plan in programs.smallest():
        result = _of(kept, plan)
        kind = "int8" if plan.quantize == "int8" else "fp8" if plan.quantize == "fp8" else "bf16"
        about = f"L = {plan.layers}, {plan.resolution}, {kind}"
        about += ", modulation kept" if plan.keep_modulation else ""
        about += f", {mesh_text(result)}" if result.mesh else ""
        rows.append([str(plan.topology), about, *_memory_cells(result)])
    return _table(columns, rows)


def meshes_table(kept: Results) -> str:
    """The best meshes of each slice for L = 4 at 640."""
    columns = ["slice", "mesh", "compute", "memory", "network", "FLOPs over minimum", "GiB a device", f"{STEPS} steps"]
    rows = []
    for topology in programs.MESHES:
        found = {name_of(plan): plan for plan in programs.swept(topology)}
        there = {name: result for name in found if (result := kept.get(name)) is not None and result.fits}
        for name, result in sorted(there.items(), key=lambda item: _bound(item[1]))[:BEST]:
            line, plan = result.roofline, found[name]
            assert line is not None
            mesh = mesh_text(result) + (f" {plan.spread}, kernels {plan.weights}" if plan.mesh.context > 1 else "")
            terms = [f"{1e3 * x:.1f} ms" for x in (line.compute, line.memory, line.network)]
            size, time = f"{result.resident / GIB:.2f}", f"{STEPS * line.bound:.2f} s"
            rows.append([topology, mesh, *terms, f"{result.repeated:.3f}", size, time])
    return _table(columns, rows)


def collectives_table(kept: Results) -> str:
    """All collectives of the denoise step of L = 4 at 640 on each slice's mesh."""
    columns = ["slice, mesh", "collective", "over", "times a step", "GB", "GB sent", "on the links"]
    rows = []
    for plan in programs.sizes():
        if (plan.layers, plan.resolution) == (4, 640):
            result = _of(kept, plan)
            for traffic in result.traffic:
                sent = [f"{x / 1e9:.3f}" for x in (traffic.bytes, traffic.sent)]
                over, time = "+".join(traffic.axes), f"{1e3 * traffic.seconds:.1f} ms"
                where = f"{plan.topology}, {mesh_text(result)}"
                rows.append([where, traffic.kind, over, str(traffic.count), *sent, time])
    return _table(columns, rows)


def training_table(kept: Results) -> str:
    """Steps of training."""
    columns = ["slice", "program", "mesh", "arguments", "temporaries", "beside it", "of", "fits, to spare"]
    columns += ["GB sent", "compute", "memory", "network", "MFU at most"]
    rows = []
    for name, plan in programs.training().items():
        result = _named(kept, name)
        about = name.removeprefix(f"{plan.topology} ")
        rows.append([plan.topology, about, mesh_text(result), *_memory_cells(result), *_time_cells(result)])
    return _table(columns, rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "sizes": sizes_table,
    "smallest": smallest_table,
    "meshes": meshes_table,
    "collectives": collectives_table,
    "training": training_table,
}


def _of(kept: Results, plan: InferencePlan) -> Result:
    return _named(kept, name_of(plan))


def _named(kept: Results, name: str) -> Result:
    result = kept.get(name)
    if result is None:
        raise QilError(f"docs/{RESULTS.name} has no result of '{name}': {FIX}")
    return result


def _size_and_time(result: Result) -> str:
    size = f"{result.resident / GIB:.1f} of {result.available / GIB:.2f}"
    if not result.fits or result.roofline is None:
        return f"{size}: **does not fit**"
    return f"{size}; {STEPS * result.roofline.bound:.1f} s, {result.roofline.limit}"


def _memory_cells(result: Result) -> list[str]:
    memory, available = result.memory, f"{result.available / GIB:.2f} GiB"
    beside = f"{sum(result.beside.values()) / GIB:.2f} GiB"
    if not memory.fits:
        return [f"{memory.peak / GIB:.2f} GiB in all", "", beside, available, "**no**"]
    fits = f"{100 * result.spare:.0f} %" if result.fits else "**no**"
    return [f"{memory.arguments / GIB:.2f} GiB", f"{memory.temporaries / GIB:.2f} GiB", beside, available, fits]


def _time_cells(result: Result) -> list[str]:
    line = result.roofline
    if line is None:
        return [""] * 5
    sent = f"{sum(traffic.sent for traffic in result.traffic) / 1e9:.1f}"
    terms = [f"{1e3 * x:.0f} ms" for x in (line.compute, line.memory, line.network)]
    mfu = result.mfu(CHIPS[Topology.parse(result.topology).chip.name].flops)
    return [sent, *terms, f"{100 * mfu:.0f} %"]


def _bound(result: Result) -> tuple[float, float]:
    assert result.roofline is not None
    return result.roofline.bound, result.roofline.in_turn


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
