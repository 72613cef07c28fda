"""The first batch that training would see: its shapes in words, its rows as a picture (docs/data.md).

qil show-batch DATASET [--out batch.png] [--rows 4] [--resolution 640] [--task image-to-layers]
"""

from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.errors import ProblemsError, say
from qil_jax.loader.tasks import Task
from qil_jax.programs import called


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("show-batch"), description=__doc__)
    add = parse.add_argument
    add("dataset", help="what qil build-dataset or qil make-scenes wrote, or folders of PNGs")
    add("--split", default="train", help="split of the dataset (default %(default)s)")
    add("--out", type=Path, default=Path("batch.png"), help="the picture, a .png (default %(default)s)")
    add("--rows", type=int, default=4, help="rows of the batch (default %(default)s)")
    add("--resolution", type=int, default=640, help="size bucket in pixels (default %(default)s)")
    tasks = [task.value for task in Task]
    add("--task", choices=tasks, default=Task.IMAGE_TO_LAYERS.value, help="task of all samples (default %(default)s)")
    add("--seed", type=int, default=0, help="seed of the order, the crops and the colours (default %(default)s)")
    return parse


def main(argv: list[str]) -> int:
    """Load a batch and show it; returns 0.

    Raises:
      ProblemsError: listing what is wrong with the command line.
    """
    args = parser().parse_args(argv)
    problems = [
        f"--{name} must be at least {least}, got {getattr(args, name)}"
        for name, least in (("rows", 1), ("resolution", 32), ("seed", 0))
        if getattr(args, name) < least
    ]
    if args.out.exists():
        problems.append(f"{args.out} exists: remove it or give another --out")
    if args.out.suffix.lower() != ".png":
        problems.append(f"--out {args.out}: must end in .png")
    if problems:
        raise ProblemsError("cannot start", problems)
    from qil_jax.loader.batch_sheet import show

    show(
        args.dataset,
        args.split,
        args.out,
        rows=args.rows,
        resolution=args.resolution,
        task=Task(args.task),
        seed=args.seed,
    )
    say(f"wrote {args.out}: green is what the model has to give, orange what it is given")
    return 0
