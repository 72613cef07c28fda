"""docs/pods.md: its tables are those of docs/pods.json, and what the page says in words holds for these results."""

import pytest

from qil_jax.planning.cache import Results
from qil_jax.planning.inference import name_of
from qil_jax.planning.result import Result
from tools.pods import pages, programs


@pytest.fixture(scope="module")
def kept() -> Results:
    return Results(pages.RESULTS)


def of(kept: Results, name: str) -> Result:
    result = kept.get(name)
    assert result is not None, name
    return result


def test_the_page_holds_the_tables_of_its_results():
    pages.check_page()


def test_every_program_of_the_tables_has_a_result_and_no_other_is_kept(kept):
    assert all(kept.get(name) is not None for name in programs.programs())
    assert len(pages.RESULTS.read_text().splitlines()) - 2 == len(programs.programs())


@pytest.mark.parametrize("topology", programs.MESHES)
def test_the_step_on_the_mesh_of_a_slice_is_bound_by_compute(kept, topology):
    (plan,) = (p for p in programs.sizes() if (p.topology, p.layers, p.resolution) == (topology, 4, 640))
    result = of(kept, name_of(plan))
    line = result.roofline
    assert line is not None and max(line.memory, line.network) <= 0.8 * line.compute
    assert 1 <= result.repeated <= 1.05 and result.fits and not result.unknown_kernels


def test_a_replica_without_modulation_is_thirteen_gigabytes_smaller(kept):
    plain, kept_too = (of(kept, f"v5p:1x1x1 one device layers 4 resolution 640{x}") for x in ("", " with modulation"))
    assert kept_too.resident - plain.resident >= 13e9


def test_more_chips_train_in_less_memory_with_as_much_traffic(kept):
    small, large = (of(kept, f"v5p:4x4x{depth} full fine-tuning") for depth in (4, 8))
    sent = [sum(traffic.sent for traffic in result.traffic) for result in (small, large)]
    assert large.resident < small.resident and small.fits
    assert sent[1] == pytest.approx(sent[0], rel=0.2)


def test_all_presets_fit_their_slice(kept):
    for name in programs.training():
        assert of(kept, name).fits, name
