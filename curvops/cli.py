"""The command line: ``curvops report`` and ``curvops info``.

typer and rich come with the extra ``cli`` and are imported when a command runs.
"""

# No postponed annotations here: typer reads those of functions that are nested in build_app().

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from curvops.errors import CurvopsError, InputError, MissingDependencyError

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from curvops.report.problem import Problem
    from curvops.report.runner import Report

_UNITS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|min|h)?\s*")
_USAGE_ERROR = 2
_INTERRUPTED = 130


def main() -> None:
    """Run the command line; the entry point of the console script ``curvops``."""
    try:
        app = build_app()
    except MissingDependencyError as error:
        sys.exit(str(error))
    app()


def build_app() -> "typer.Typer":
    """Return the typer application.

    Raises:
        MissingDependencyError: If typer or rich is not installed.
    """
    try:
        import rich.console
        import typer
    except ImportError as error:
        raise MissingDependencyError(
            f"The command line needs {error.name}, which is not installed. "
            'Install the extra "cli" (or "demo"): pip install "curvops[demo]".'
        ) from error
    app = typer.Typer(
        name="curvops",
        help="Curvature of neural networks, without forming it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,  # data do not belong into a traceback
    )

    @app.command()
    def report(
        target: Annotated[
            str | None,
            typer.Argument(
                metavar="MODULE:FUNCTION",
                help="What returns an EmpiricalRisk, or (model, loss, data). "
                "Without it: a small network on scikit-learn's digits.",
            ),
        ] = None,
        only: Annotated[
            str | None,
            typer.Option(help="Names of sections, separated by commas.", metavar="A,B"),
        ] = None,
        out: Annotated[
            Path, typer.Option(help="Folder for index.html and report.json.", metavar="DIR")
        ] = Path("curvops-report"),
        device: Annotated[
            str | None,
            typer.Option(help="Such as cpu or cuda; by default the problem's own."),
        ] = None,
        seed: Annotated[int, typer.Option(help="Seeds everything random.", min=0)] = 0,
        budget: Annotated[
            str | None,
            typer.Option(help="Skip sections that do not fit, such as 60s or 5m.", metavar="TIME"),
        ] = None,
        json: Annotated[
            str | None,
            typer.Option(help="Write the JSON here too; - is the standard output.", metavar="FILE"),
        ] = None,
        max_dense: Annotated[
            int,
            typer.Option(help="Form the dense Hessian up to this many parameters.", min=0),
        ] = 3000,
        run: Annotated[
            Path | None,
            typer.Option(help="The journal of a monitored training run.", metavar="FILE"),
        ] = None,
    ) -> None:
        """Report on the curvature of a problem: an HTML page, a JSON document, a summary."""
        errors = rich.console.Console(stderr=True)
        try:
            code = _report(target, only, out, device, seed, budget, json, max_dense, run, errors)
        except KeyboardInterrupt:
            _say(errors, "Interrupted before there was anything to write.")
            code = _INTERRUPTED
        raise typer.Exit(code)

    @app.command()
    def info(
        json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    ) -> None:
        """Show versions, devices, and which attention kernels have second derivatives."""
        from curvops.report.info import info_document, info_tables

        if json:
            from curvops.report.document import to_json

            sys.stdout.write(to_json(info_document()))
        else:
            rich.console.Console().print(info_tables())

    return app


def parse_budget(text: str) -> float:
    """Return seconds from ``60s``, ``90``, ``1.5m``, ``2h`` or ``500ms``.

    Raises:
        InputError: If it is none of these, or zero.

    Example:
        >>> parse_budget("60s"), parse_budget("1.5m"), parse_budget("90")
        (60.0, 90.0, 90.0)
    """
    match = _BUDGET.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    if seconds <= 0:
        raise InputError(f"--budget is {text!r}; write a positive time such as 60s, 1.5m or 2h.")
    return seconds


def _report(
    target: str | None,
    only: str | None,
    out: Path,
    device: str | None,
    seed: int,
    budget: str | None,
    json: str | None,
    max_dense: int,
    run: Path | None,
    errors: "Console",
) -> int:
    """Check everything that can be checked, then work, then write; return the exit code."""
    from time import perf_counter

    from curvops.report import Options
    from curvops.report.output import OutputError, prepare_file, prepare_folder
    from curvops.report.problem import ProblemError
    from curvops.report.registry import select
    from curvops.training.journal import read_journal

    started = perf_counter()
    try:
        names = None if only is None else tuple(n.strip() for n in only.split(",") if n.strip())
        select(names)
        seconds = None if budget is None else parse_budget(budget)
        journal = None if run is None else str(run)
        options = Options(names, seed, seconds, max_dense, journal)
        if journal is not None:
            read_journal(journal)
        _check_device(device)
        prepare_folder(out)
        if json is not None and json != "-":
            prepare_file(Path(json))
        report = _compute(target, device, options, started, errors)
        return _write(report, out, json, errors)
    except (ProblemError, OutputError, MissingDependencyError) as error:
        _say(errors, str(error))
        # An impossible folder is a wrong call; a failing problem is a failed report.
        return _USAGE_ERROR if isinstance(error, OutputError) else 1
    except CurvopsError as error:
        _say(errors, str(error))
        return _USAGE_ERROR


def _compute(
    target: str | None,
    device: str | None,
    options: Any,
    started: float,
    errors: "Console",
) -> "Report":
    from curvops.report.problem import load_problem
    from curvops.report.runner import run_report
    from curvops.report.terminal import ProgressLine

    if target is None:
        import torch

        # The digits are too small for two threads to help, and where cores are shared or fewer
        # than torch believes, threads that wait for one another are a hundred times slower.
        torch.set_num_threads(1)
    with ProgressLine(errors) as line:
        what = "Training a small network on digits" if target is None else f"Building {target}"
        line.announce(what)
        problem: Problem = load_problem(target, seed=options.seed, device=device)
        return run_report(problem, options, listener=line, started=started)


def _write(report: "Report", out: Path, json: str | None, errors: "Console") -> int:
    from rich.console import Console
    from rich.text import Text

    from curvops.report.document import to_document, to_json
    from curvops.report.html import to_html
    from curvops.report.output import write_whole
    from curvops.report.terminal import printable, summary

    call = shlex.join(["curvops", *sys.argv[1:]])
    document = to_json(to_document(report, call))
    write_whole(out / "report.json", document)
    write_whole(out / "index.html", to_html(report, call))
    if json is not None and json != "-":
        write_whole(Path(json), document)
    # With JSON on the standard output, what is meant for people goes to the other one.
    console = errors if json == "-" else Console()
    console.print(summary(report))
    console.print(Text(printable(f"Wrote {out / 'index.html'} and report.json")), soft_wrap=True)
    if json == "-":
        sys.stdout.write(document)
    return report.exit_code


def _check_device(device: str | None) -> None:
    """Refuse a device that torch cannot use, before any work."""
    if device is None:
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {device!r} cannot be used: {reason}") from error


def _say(console: "Console", text: str) -> None:
    from rich.text import Text

    from curvops.report.terminal import printable

    line = Text("Error: ", style="bold red")
    line.append(printable(text), style="default")
    console.print(line, soft_wrap=True)
