"""Apache Beam, imported without its warnings, and the checked options of a runner."""

import logging
from collections.abc import Sequence

from qil_jax.command_line import nearest
from qil_jax.errors import QilError

_disabled = logging.root.manager.disable
logging.disable(logging.WARNING)  # Beam warns of Google's libraries, which only its BigQuery source needs
import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions  # noqa: E402

logging.disable(_disabled)

IN_PROCESS = "FnApiRunner"
"""The default runner. Beam's own default, DirectRunner, would first try to download another program."""


def beam_options(runner: str = IN_PROCESS, flags: Sequence[str] = ()) -> PipelineOptions:
    """Beam's options for a runner.

    Raises:
      QilError: if Beam does not know the runner or lacks what it needs, or the options do not suit it.
    """
    options = PipelineOptions([f"--runner={runner}", *flags])
    try:
        beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError) as error:
        raise QilError(f"--runner {runner}: {error}") from error
    if runner.lower() in map(str.lower, StandardOptions.LOCAL_RUNNERS):
        known, given = (options.get_all_options(retain_unknown_options=keep) for keep in (False, True))
        options_known = [f"--{name}" for name in known]
        named = [f"--{name}{nearest(f'--{name}', options_known)}" for name in given if name not in known]
        if named:
            raise QilError(f"{runner} of Apache Beam has no option {', '.join(named)}")
    return options


__all__ = ["IN_PROCESS", "PipelineOptions", "beam", "beam_options"]
