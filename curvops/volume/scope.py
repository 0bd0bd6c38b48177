"""A risk as a function of some of its parameters, the others held where they are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase

from curvops.errors import InputError
from curvops.risk import EmpiricalRisk

Scope = str | Sequence[str] | None
"""Globs over the names of a risk's parameters; ``None`` for all of them."""


def restrict(risk: EmpiricalRisk, scope: Scope) -> EmpiricalRisk:
    r"""Return a risk as a function of the parameters whose names match.

    .. math:: \theta_S \mapsto L(\theta_S, \theta^*_{\bar S})

    The others are held at the risk's own values, also where these differ from the module's.
    Weight decay then counts the chosen parameters only, so that the loss differs by a constant.

    Args:
        risk: The risk; data and checks are shared with it.
        scope: A glob over the names in ``risk.params`` or several, such as ``"*.bias"``; ``None``
            returns the risk itself.

    Raises:
        InputError: If a glob matches no parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> data = [(torch.ones(4, 3), torch.zeros(4, 2))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
        >>> restrict(risk, "bias").space
        Space(names=('bias',), shapes=(torch.Size([2]),))
    """
    if scope is None:
        return risk
    globs = [scope] if isinstance(scope, str) else list(scope)
    if not globs or not all(isinstance(glob, str) for glob in globs):
        raise InputError(f"scope must be a glob over parameter names or several, got {scope!r}.")
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in risk.params):
            raise InputError(f"scope={glob!r} matches none of the parameters {list(risk.params)}.")
    chosen = {
        name: p for name, p in risk.params.items() if any(fnmatchcase(name, glob) for glob in globs)
    }
    other = copy.copy(risk)
    other.params = chosen
    other._model = risk._model.holding(
        {name: p for name, p in risk.params.items() if name not in chosen}
    )
    return other


def _matches(name: str, glob: str) -> bool:
    # A name that holds brackets or stars still means itself.
    return name == glob or fnmatchcase(name, glob)
