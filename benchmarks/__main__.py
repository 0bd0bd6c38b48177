"""The command line: ``python -m benchmarks`` and what to measure, ``check`` or ``docs``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import (
    bridge,
    check,
    docs,
    eigs,
    landscape,
    logdet,
    memory,
    pictures,
    products,
    report,
    scaling,
    training,
    volume,
)
from benchmarks.environment import environment
from benchmarks.options import Options
from benchmarks.peers import PEERS
from benchmarks.problems import PROBLEMS
from benchmarks.results import FOLDER, Result, committed

BENCHMARKS = {
    "products": (products.run, "the price of one product, ours in every way and the peers'"),
    "eigs": (eigs.run, "the largest Hessian eigenpairs, end to end"),
    "logdet": (logdet.run, "log-determinants of the digits network, at equal products"),
    "volume": (volume.run, "basin volumes of the digits network by preconditioner, and others"),
    "bridge": (bridge.run, "the digits network's volume by annealing, between its bounds"),
    "landscape": (landscape.run, "the loss at 81 points of a plane, whatever the batch size"),
    "memory": (memory.run, "peak memory, each case in a process of its own"),
    "training": (training.run, "a training step with quantities, beside the plain step"),
    "scaling": (scaling.run, "time against data, parameters and columns"),
}

DEFAULT_PROBLEMS = {
    "eigs": ("mlp", "cnn", "fashion"),
    "scaling": scaling.PROBLEMS,
    "training": training.PROBLEMS,
}
"""Where all would take hours, or say nothing new; any problem can still be asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, products without a word; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(arguments or ["products"])
    if args.command == "docs":
        return _docs(args.check)
    if args.command == "check":
        return _check(args.file, args.against, args.tolerance)
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    options = Options(
        problems=args.problems,
        peers=_default_peers(args.quick) if args.peers is None else args.peers,
        quick=args.quick,
        threads=args.threads,
        repeats=args.repeats,
        budget=args.budget,
        device=args.device,
        root=args.data,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    measure, _ = BENCHMARKS[args.command]
    found = Result(args.command, environment(args.device), options.to_dict(), [])
    if (found.environment["load"] or 0.0) > 0.5:
        options.say(f"others are at work here (load {found.environment['load']}): expect noise")
    before = Result.load(args.json) if args.update and args.json.exists() else None
    for rows in measure(options):
        found.rows.extend(rows)
        if args.json is not None:  # after each problem: a long run may be interrupted
            whole = found if before is None else before.replaced_by(found)
            whole.save(args.json)
    print(report.summary(found))
    for line in report.notes(found.rows):
        print(f"note: {line}")
    if args.json is not None:
        _draw(Result.load(args.json), args.json.with_suffix(".png"))
    return 0


def _draw(result: Result, path: Path) -> None:
    try:
        if pictures.draw(result, path):
            print(f"wrote {path}")
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)


def _check(path: Path, against: Path | None, tolerance: float) -> int:
    fresh = Result.load(path)
    baseline = Result.load(against) if against else committed(fresh.benchmark)
    if baseline is None:
        print(f"no run of {fresh.benchmark} is committed in {FOLDER.name}/", file=sys.stderr)
        return 2
    try:
        comparison = check.compare(baseline, fresh, tolerance)
    except ValueError as error:
        print(f"these cannot be compared: {error}", file=sys.stderr)
        return 2
    same = baseline.environment.get("cpu") == fresh.environment.get("cpu")
    print(
        f"{comparison.compared} numbers compared at a tolerance of {tolerance:.0%}; "
        f"{comparison.missing} of the committed ones were not measured again"
        + ("" if same else "; the processors differ, so take the verdict with care")
    )
    if not comparison.regressions:
        return 0
    print(f"\n{len(comparison.regressions)} dearer than before:\n")
    print(check.table(comparison).text())
    return 1


def _docs(only_check: bool) -> int:
    if not only_check:
        docs.write()
        return 0
    current = docs.PAGE.read_text(encoding="utf-8") if docs.PAGE.exists() else ""
    if current == docs.page():
        return 0
    print("docs/benchmarks.md is not what `python -m benchmarks docs` writes", file=sys.stderr)
    return 1


def _default_peers(quick: bool) -> tuple[str, ...]:
    """Compiling takes minutes, so a quick look leaves the compiled peer out."""
    return tuple(name for name in PEERS if not (quick and "compiled" in name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, help_) in BENCHMARKS.items():
        command = commands.add_parser(name, help=help_)
        command.add_argument("--quick", action="store_true", help="small data, few rounds")
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="write JSON, and a PNG beside"
        )
        command.add_argument(
            "--update", action="store_true", help="keep the problems in FILE that are not run now"
        )
        chosen = DEFAULT_PROBLEMS.get(name, tuple(PROBLEMS))
        command.add_argument("--problems", type=_names(PROBLEMS), default=chosen)
        command.add_argument("--peers", type=_names(PEERS), help='names, or "none"')
        command.add_argument("--threads", type=int, default=2)
        command.add_argument(
            "--repeats", type=int, help="rounds; by default what the budget allows"
        )
        command.add_argument("--budget", type=float, help="seconds of timing per table")
        command.add_argument("--device", default="cpu")
        command.add_argument("--data", type=Path, metavar="FOLDER", help="of Fashion-MNIST")
    command = commands.add_parser("check", help="compare a run with the committed one")
    command.add_argument("file", type=Path)
    command.add_argument("--against", type=Path, help="another run than the committed one")
    command.add_argument("--tolerance", type=float, default=check.TOLERANCE)
    command = commands.add_parser("docs", help="write docs/benchmarks.md from the results")
    command.add_argument("--check", action="store_true", help="only say whether it is up to date")
    return parser


def _names(known):  # type: ignore[no-untyped-def]
    """Return a reader of comma-separated names."""

    def read(text: str) -> tuple[str, ...]:
        names = () if text == "none" else tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {unknown}; known: {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
