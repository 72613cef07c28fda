"""Decompose pictures into editable RGBA layers: python -m qil_jax.inference PICTURE... --out DIR; also as infer.py."""

import sys

from qil_jax.inference.cli import parse_arguments, report, show_progress


def main(argv: list[str] | None = None) -> int:
    """Parse, check, load, decompose, report. Returns the exit status: 2 for input that cannot be used."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    # The heavy imports wait until the arguments make sense.
    from qil_jax.inference.job import check_output, find_tasks, run_job
    from qil_jax.inference.pipeline import Pipeline
    from qil_jax.mesh import MeshShape, make_mesh, single_device_mesh

    try:
        options, settings = arguments.options(), arguments.settings()
        tasks = find_tasks(arguments.inputs, arguments.out, resolution=arguments.resolution)
        left = check_output(arguments.out, tasks, arguments.record(), overwrite=arguments.overwrite)
        done = []
        if left:
            mesh = make_mesh(MeshShape.parse(arguments.mesh)) if arguments.mesh else single_device_mesh()
            pipeline = Pipeline.load(arguments.checkpoint, mesh=mesh, dtype=arguments.dtype)
            with show_progress(len(left), arguments.batch) as on_step:
                done = run_job(
                    left,
                    pipeline,
                    options,
                    settings,
                    record={"settings": arguments.record()},
                    batch=arguments.batch,
                    overwrite=arguments.overwrite,
                    on_step=on_step,
                )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report(tasks, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
