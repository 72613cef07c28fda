"""Broken input for the programs, from seeds: each case must end in a result or in a clear refusal, and lose nothing.

python tools/fuzz documents [--count 2000] [--seed 0]

Prints how often each outcome came, and exits 1 if there was a traceback, a hang, or a byte lost of the input or of
other files in the folder of the output. The same seed is the same input, so a failure is repeated by its seed.
"""

import collections
import importlib
import tempfile
from pathlib import Path

from rich.console import Console

from qil_jax.cli import build_dataset, make_scenes
from qil_jax.command_line import Parser
from qil_jax.errors import say
from qil_jax.extras import require
from qil_jax.programs import run_main
from qil_jax.terminal import Table

CAMPAIGNS = {
    "documents": "Photoshop documents and the files beside them, through build_dataset.py",
    "pictures": "pictures of all formats, through infer.py",
    "commands": "command lines of the programs",
    "edits": "edit scripts, through edit.py",
    "app": "the HTTP API of the app, without a model",
    "kills": "programs killed at random times and started again",
    "psd": "Photoshop documents, through the reader of qil export",
    "ora": "OpenRaster files, likewise",
    "pptx": "presentations, likewise",
    "zip": "archives of PNGs with a manifest, likewise",
    "json": "files of JSON that programs of the package write and read again",
}
"""Each NAME is a function NAME(seeds, folder), of tools.fuzz.NAME or as MODULES says, which yields a Case a seed."""
MODULES = {"psd": "readers", "ora": "readers", "pptx": "readers", "zip": "readers", "json": "own_json"}
"""The modules that are called otherwise."""
NEEDS = {"documents": build_dataset.NEEDS, "commands": make_scenes.NEEDS, "kills": build_dataset.NEEDS}
NEEDS |= {"app": ("gradio",)}
"""Campaign to the optional modules of the programs that it calls."""


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog="tools/fuzz", description=__doc__)
    campaigns = parse.add_subparsers(dest="campaign", required=True, help="what is broken")
    for name, what in CAMPAIGNS.items():
        campaign = campaigns.add_parser(name, help=what, description=what)
        campaign.add_argument("--count", type=int, default=2000, help="number of cases (default %(default)s)")
        campaign.add_argument("--seed", type=int, default=0, help="seed of the first case (default %(default)s)")
    return parse


def main(argv: list[str] | None = None) -> int:
    """Run a campaign; returns 0 if no case failed, else 1."""
    parse = parser()
    arguments = parse.parse_args(argv)
    require(f"tools/fuzz {arguments.campaign}", *NEEDS.get(arguments.campaign, ()))
    if arguments.count < 1 or arguments.seed < 0:
        parse.error(f"--count must be at least 1 and --seed 0, got {arguments.count} and {arguments.seed}")
    module = MODULES.get(arguments.campaign, arguments.campaign)
    campaign = getattr(importlib.import_module(f"tools.fuzz.{module}"), arguments.campaign)
    outcomes, failures = collections.Counter[str](), []
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    with tempfile.TemporaryDirectory() as folder:
        for done, case in enumerate(campaign(seeds, Path(folder)), start=1):
            outcomes[case.outcome] += 1
            if case.failure:
                failures.append(case)
                say(f"FAILED, seed {case.seed}: {case.failure}")
            if done % max(1, arguments.count // 10) == 0:
                say(f"{done}/{arguments.count} cases, {len(failures)} failed")
    table = Table("outcome", "cases")
    for outcome, count in outcomes.most_common():
        table.add_row(outcome, str(count))
    Console().print(table)
    say(f"{outcomes.total()} cases from seed {arguments.seed}: {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    run_main(main)
