"""All meshes of a topology for a denoise step, compiled one after another and ranked by their bound."""

import dataclasses
from collections.abc import Iterator

from qil_jax.choices import Passes
from qil_jax.errors import complain
from qil_jax.kernels import Spread
from qil_jax.mesh import MeshError, MeshShape, Weights
from qil_jax.planning.cache import Results
from qil_jax.planning.chips import GIB, Topology
from qil_jax.planning.inference import InferencePlan, name_of, plan_inference
from qil_jax.planning.result import Result

SPREADS = (Spread.ULYSSES, Spread.GATHER)
"""Spreads that a sweep compares; a ring moves what gathering moves, in more steps."""
Named = dict[str, Result]


def meshes(devices: int, *, guided: bool) -> Iterator[MeshShape]:
    """All meshes of so many devices: of every size of cfg, data, fsdp, context and tensor."""
    for cfg in (1, 2) if guided else (1,):
        rest = devices // cfg if devices % cfg == 0 else 0
        for data in _divisors(rest):
            for fsdp in _divisors(rest // data):
                for context in _divisors(rest // data // fsdp):
                    tensor = rest // data // fsdp // context
                    yield MeshShape(cfg=cfg, data=data, fsdp=fsdp, context=context, tensor=tensor)


def candidates(plan: InferencePlan) -> Iterator[InferencePlan]:
    """The plans of a sweep: those whose rows fill the mesh, and that differ in the program."""
    rows = plan.batch * (2 if plan.guidance else 1)
    guided = plan.guidance and plan.passes is Passes.BATCH
    for mesh in meshes(Topology.parse(plan.topology).devices, guided=guided):
        if rows % (mesh.cfg * mesh.data * mesh.fsdp) or plan.batch % (mesh.data * mesh.fsdp):
            continue
        split = mesh.context > 1
        for spread in SPREADS if split else (Spread.ULYSSES,):
            for weights in Weights if split else (Weights.SPLIT,):
                yield dataclasses.replace(plan, mesh=mesh, spread=spread, weights=weights)


def swept(plan: InferencePlan, kept: Results, *, effort: float = 0.0) -> Named:
    """Results of all candidates by name, the fastest first; meshes that the rules refuse are said and left out."""
    found: Named = {}
    plans = list(candidates(plan))
    for number, candidate in enumerate(plans, start=1):
        name = name_of(candidate)
        complain(f"{number}/{len(plans)} {name}")
        try:
            found[name] = plan_inference(candidate, effort=effort, kept=kept)
        except MeshError as error:
            complain(f"  left out: {'; '.join(error.problems)}")
    return dict(sorted(found.items(), key=lambda item: _rank(item[1])))


def ranking(results: Named, *, steps: int) -> str:
    """A table of results, in their order."""
    lines = [f"{'bound':>9} {'compute':>9} {'memory':>9} {'network':>9} {'a device':>10} {f'{steps} steps':>9}  plan"]
    for name, result in results.items():
        memory = f"{result.resident / GIB:.1f} GiB"
        if result.roofline is None or not result.fits:
            lines.append(f"{'too large':>9} {'':>9} {'':>9} {'':>9} {memory:>10} {'':>9}  {name}")
            continue
        line = result.roofline
        terms = " ".join(f"{1e3 * x:>6.1f} ms" for x in (line.bound, line.compute, line.memory, line.network))
        lines.append(f"{terms} {memory:>10} {steps * line.bound:>7.2f} s  {name}")
    return "\n".join([*lines, "compiled, not run"])


def _rank(result: Result) -> tuple[bool, float, float]:
    """Order of results: what fits by bound, then by the sum of all terms; what does not fit by its memory."""
    if not result.fits or result.roofline is None:
        return True, result.resident, 0.0
    return False, result.roofline.bound, result.roofline.in_turn


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
