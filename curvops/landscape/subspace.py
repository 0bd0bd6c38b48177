"""Parts of the parameter space, chosen by the parameters' names."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.tensors import Space

WHOLE = "*"
"""The glob that matches every parameter."""


def matching(space: Space, pattern: str, what: str = "subspaces") -> tuple[str, ...]:
    """Return the names that a substring or a glob matches, in the order of the space.

    Args:
        space: The parameter space.
        pattern: A glob over whole names if it holds ``*``, ``?`` or ``[``, otherwise a substring.
        what: How the error message calls the argument.

    Raises:
        InputError: If nothing matches; the message lists the names.

    Example:
        >>> space = Space(("fc1.weight", "fc1.bias", "fc2.weight"), (torch.Size([1]),) * 3)
        >>> matching(space, "fc1"), matching(space, "*.weight")
        (('fc1.weight', 'fc1.bias'), ('fc1.weight', 'fc2.weight'))
    """
    if not isinstance(pattern, str) or not pattern:
        raise InputError(f"{what} holds {pattern!r}; expected a substring or a glob over names.")
    if any(c in pattern for c in "*?["):
        names = tuple(name for name in space.names if fnmatchcase(name, pattern))
    else:
        names = tuple(name for name in space.names if pattern in name)
    if not names:
        shown = ", ".join(space.names[:20]) + (", …" if len(space.names) > 20 else "")
        raise InputError(
            f"{what}: {pattern!r} matches none of the {len(space.names)} parameters. Write a "
            f"substring or a glob of one of: {shown}."
        )
    return names


def mask(space: Space, pattern: str, what: str = "subspaces") -> Tensor:
    """Return ``[P]``, true where an entry belongs to a parameter that the pattern matches.

    Raises:
        InputError: If nothing matches.
    """
    names = set(matching(space, pattern, what))
    inside = torch.zeros(space.dim, dtype=torch.bool)
    for name, part in space.slices():
        inside[part] = name in names
    return inside
