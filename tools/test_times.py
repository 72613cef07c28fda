"""Where the time of the tests goes, as a Markdown table.

python -m pytest -p tests.times --times times.json
python tools/test_times.py times.json            by file, the dearest first
python tools/test_times.py times.json --tests    by test
"""

import collections
import json
from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.programs import run_main


def table(tests: dict[str, dict[str, float]], *, by_test: bool, rows: int) -> str:
    """What tests took, by file or by test, as a Markdown table: the dearest in CPU seconds first."""
    groups: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, times in tests.items():
        groups[name if by_test else name.partition("::")[0]].update({**times, "tests": 1})
    total = collections.Counter()
    for times in groups.values():
        total.update(times)
    order = sorted(groups, key=lambda name: -(groups[name]["cpu"] + groups[name]["children"]))
    lines = ["| | tests | clock s | CPU s | of these in programs | compiling s |", "|---|---|---|---|---|---|"]
    for name, times in [*((name, groups[name]) for name in order[:rows]), ("all", total)]:
        figures = (times["clock"], times["cpu"] + times["children"], times["children"], times["compiling"])
        lines.append(f"| {name} | {times['tests']} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Print the table; returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("times", type=Path, help="what --times wrote")
    parser.add_argument("--tests", action="store_true", help="by test instead of by file")
    parser.add_argument("--rows", type=int, default=40, help="how many rows (default %(default)s)")
    arguments = parser.parse_args(argv)
    print(table(json.loads(arguments.times.read_text()), by_test=arguments.tests, rows=arguments.rows))
    return 0


if __name__ == "__main__":
    run_main(main)
