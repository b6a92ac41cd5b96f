"""Pipeline options of Apache Beam as one string. Beam, an extra, is imported when it is asked
for."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

from jaxdistill.data import files
from jaxdistill.errors import BadInput, nearest

_OURS = re.compile(
    r"jaxdistill\.errors\.BadInput: (.*?)(?: \[while running|\n|$)"
)  # in the text of a worker's traceback
# Runners that know options which only their job server can name.
_PORTABLE = ("PortableRunner", "FlinkRunner", "SparkRunner")


def require() -> None:
    """Raises BadInput if Apache Beam is not installed."""
    try:
        with files.quiet_logging():  # Beam says which of its extras are not there
            import apache_beam  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise BadInput(
            "beam_options were given, but Apache Beam is not installed: pip install apache-beam, or leave "
            "them out to prepare the text in this process"
        ) from error


def parse_options(text: str) -> tuple[Any, Any]:
    """'runner=NAME,OPTION=VALUE,FLAG' as a runner and options, as TFDS's own command line reads
    them.

    DirectRunner is the one in Python: where Beam's would download and start another (Prism), that
    is asked for by name.

    Raises:
        BadInput: Beam is not installed; an unknown runner or option, or a value or combination that Beam refuses.
    """
    require()
    with files.quiet_logging():
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.runners.runner import create_runner

    flags = [f"--{option.strip()}" for option in text.split(",") if option.strip()]
    said = io.StringIO()
    try:
        with (
            files.quiet_logging(),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            options = PipelineOptions(flags=flags)
            known = options.get_all_options()
            given = options.get_all_options(retain_unknown_options=True)
            name = options.view_as(StandardOptions).runner or "DirectRunner"
            runner = FnApiRunner() if name in ("DirectRunner", "direct") else create_runner(name)
            if refused := PipelineOptionsValidator(options, runner).validate():
                raise ValueError(" ".join(refused))
    except (
        Exception,
        SystemExit,
    ) as error:  # argparse prints its usage and ends the process, or would
        why = (
            said.getvalue().split("error: ")[-1].strip()
            if isinstance(error, SystemExit)
            else one_line(error)
        )
        raise BadInput(
            f"beam_options {text!r} cannot be used: {why or 'not an option'}; expected OPTION=VALUE,… of Beam, "
            "e.g. runner=DirectRunner,direct_num_workers=2"
        ) from error
    unknown = sorted(given.keys() - known.keys())
    if unknown and name not in _PORTABLE:
        close = nearest(unknown[0], known, "see Beam's pipeline options")
        raise BadInput(f"beam_options {text!r}: Beam has no option {unknown[0]!r}; {close}")
    return runner, options


def is_ours(error: BaseException) -> bool:
    """Whether an error, maybe a worker's, is one of ours: its line says all."""
    return isinstance(error, BadInput) or _OURS.search(str(error)) is not None


def one_line(error: BaseException) -> str:
    """One line of an error that may be a worker's whole traceback; ours as it was."""
    text = str(error).strip() or type(error).__name__
    if match := _OURS.search(text):
        return match[1]
    if "Traceback" in text:
        text = text.splitlines()[-1]
    return re.sub(r" \[while running.*", "", " ".join(text.split()))[:400]
