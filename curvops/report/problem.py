"""The problem a report is about: the bundled digits, or ``module:function`` of the user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from curvops.errors import CurvopsError, DeviceError, InputError
from curvops.risk import EmpiricalRisk
from curvops.rng import PrivateRNG

# What the calls in report.json rely on.
_SETUP = """\
import statistics
import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from curvops.landscape import eigenvector, line, plane, rays
from curvops.linalg.density import spectral_density
from curvops.linalg.eigsh import eigsh as native_eigsh
from curvops.linalg.frobenius import frobenius_norm
from curvops.linalg.logdet import logdet
from curvops.linalg.trace import trace
from curvops.operators import BlockDiagonalLinearOperator
from curvops.operators import GGNLinearOperator, HessianLinearOperator
from curvops.report import load_problem
from curvops.report.accuracy import accuracy
from curvops.report.training_run import demo_run
from curvops.training import read_journal
from curvops.volume import basin_volume, logdet_from_eigenvalues, quadratic_volume
from curvops.volume.learning_coefficient import local_learning_coefficient

risk = {load}.risk
hessian = HessianLinearOperator.from_risk(risk)
"""


class TargetError(InputError):
    """``module:function`` names nothing that can be called."""


class ProblemError(CurvopsError, RuntimeError):
    """The user's function failed, or returned something that is no problem."""


@dataclass(frozen=True)
class Problem:
    """A risk and where it came from.

    Attributes:
        risk: The empirical risk.
        name: What to call the problem.
        setup: Python that builds ``risk`` and ``hessian`` again.
        seconds: How long building (and training) it took.
        is_demo: Whether it is the bundled digits problem.
    """

    risk: EmpiricalRisk
    name: str
    setup: str
    seconds: float = 0.0
    is_demo: bool = False


def load_problem(
    target: str | None = None, *, seed: int = 0, device: torch.device | str | None = None
) -> Problem:
    """Return the problem that ``module:function`` builds, or the bundled digits problem.

    The function returns an :class:`~curvops.risk.EmpiricalRisk`, or a tuple
    ``(model, loss, data)`` or ``(model, loss, params, data)``. Arguments of it that are called
    ``seed`` or ``device`` are given the values passed here. It runs with all global generators
    seeded by ``seed``, and they are put back afterwards. The module is looked for in the current
    folder first; no other module is imported.

    Args:
        target: ``"package.module:function"``; None for the digits.
        seed: Seeds the problem.
        device: Where the problem should live.

    Returns:
        The problem.

    Raises:
        TargetError: If the target is malformed, or names nothing that can be called.
        ProblemError: If the module or the function fails, or returns something else.
        DeviceError: If the function ignored ``device``.

    Example:
        >>> load_problem("no_colon")
        Traceback (most recent call last):
        ...
        curvops.report.problem.TargetError: 'no_colon' is not of the form module:function.
    """
    start = perf_counter()
    place = None if device is None else str(device)
    arguments = f"seed={seed}" if place is None else f"seed={seed}, device={place!r}"
    if target is None:
        from curvops.report.demo import digits_problem

        risk, name = digits_problem(seed, place), "digits"
        load = f"load_problem({arguments})"
    else:
        with _current_folder_importable(), PrivateRNG(seed).active():
            risk = _build(_resolve(target), target, seed, place)
        name, load = target, f"load_problem({target!r}, {arguments})"
    _check_device(risk, place, target)
    setup = _SETUP.format(load=load)
    return Problem(risk, name, setup, perf_counter() - start, is_demo=target is None)


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Put the current folder in front of the module path, as ``python script.py`` would.

    Afterwards it stays at the end of the path: what the user's code imports late is still found,
    but a file there can no longer take the place of an installed package.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _resolve(target: str) -> Callable[..., Any]:
    """Import the module and return the function."""
    module_name, colon, attribute = target.partition(":")
    if module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").replace("/", ".")
        raise TargetError(f"{target!r} names a file; write {dotted}:{attribute or 'problem'}.")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise TargetError(f"{target!r} is not of the form module:function.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only the module itself (or a package above it) missing is a wrong target.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise TargetError(
                f"There is no module {error.name!r} in {os.getcwd()} or among the installed "
                f"packages (from {target!r})."
            ) from error
        raise ProblemError(f"Importing {module_name!r} failed: {_told(error)}") from error
    except Exception as error:
        raise ProblemError(f"Importing {module_name!r} failed: {_told(error)}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, [n for n in dir(found) if n[0] != "_"], n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            file = getattr(module, "__file__", None) or "a namespace package"
            raise TargetError(f"{module_name!r} ({file}) has no {attribute!r}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise TargetError(f"{target!r} is {type(found).__name__}; it must be a function.")
    return found  # type: ignore[no-any-return]


def _build(
    function: Callable[..., Any], target: str, seed: int, device: str | None
) -> EmpiricalRisk:
    """Call the function and make a risk of what it returns."""
    offered = {"seed": seed, "device": device}
    try:
        accepted = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        accepted = set()
    given = {
        name: value
        for name, value in offered.items()
        if name in accepted and not (name == "device" and value is None)
    }
    try:
        made = function(**given)
        if isinstance(made, EmpiricalRisk):
            return made
        if isinstance(made, tuple) and len(made) in (3, 4):
            return _from_tuple(made, device)
    except Exception as error:
        raise ProblemError(f"{target} failed: {_told(error)}") from error
    raise ProblemError(
        f"{target} returned {_described(made)}; expected an EmpiricalRisk, or a tuple "
        "(model, loss, data) or (model, loss, params, data)."
    )


def _from_tuple(made: tuple[Any, ...], device: str | None) -> EmpiricalRisk:
    model, loss, *params, data = made
    if not params and not isinstance(model, nn.Module):
        raise InputError(
            f"model is {type(model).__name__}, not a torch.nn.Module: return "
            "(model, loss, params, data) to name its parameters."
        )
    if isinstance(model, nn.Module) and device is not None and not params:
        model = model.to(device)
    return EmpiricalRisk(model, loss, params[0] if params else model, data)


def _check_device(risk: EmpiricalRisk, device: str | None, target: str | None) -> None:
    if device is None:
        return
    wanted = torch.empty(0, device=device).device
    if risk.device != wanted:
        raise DeviceError(
            f"{target} built its problem on {risk.device}, but {wanted} was asked for. Give the "
            "function an argument called device, and use it."
        )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return type(value).__name__
