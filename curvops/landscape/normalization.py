r"""The length of a direction: of the whole, of each layer, or of each filter.

.. math:: d \leftarrow \frac{d}{\|d\|}, \qquad
    d_{lf} \leftarrow \frac{\|\theta_{lf}\|}{\|d_{lf}\|} \, d_{lf}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from curvops.errors import InputError

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

Normalization = Literal["unit", "filter", "layer", "none"]
Ignore = Literal["biasbn"]

KINDS = ("unit", "filter", "layer", "none")


def check_normalization(kind: str, ignore: str | None) -> None:
    """Raise an error unless there are such a normalisation and such a choice to ignore."""
    if kind not in KINDS:
        known = ", ".join(f'"{name}"' for name in KINDS)
        raise InputError(f"normalization is {kind!r}; it must be one of {known}.")
    if ignore not in ("biasbn", None):
        raise InputError(f'ignore is {ignore!r}; it must be "biasbn" or None.')


def normalize(
    risk: EmpiricalRisk,
    columns: Tensor,
    kind: Normalization = "unit",
    ignore: Ignore | None = "biasbn",
) -> Tensor:
    """Scale directions.

    ==============  =============================================================================
    kind            what gets which length
    ==============  =============================================================================
    ``"unit"``      the whole direction, length one
    ``"layer"``     each parameter tensor of it, the norm of that tensor of θ
    ``"filter"``    each filter of it (of a convolution the weights of one output channel, of a
                    linear layer those of one neuron), the norm of that filter of θ
    ``"none"``      nothing is scaled
    ==============  =============================================================================

    With ``"layer"`` and ``"filter"``, biases and the parameters of normalisation layers are set
    to 0 if ``ignore="biasbn"``; with ``None`` they are scaled too, entry by entry if by filter.
    A filter that is 0, in the direction or in θ, stays or becomes 0.

    Args:
        risk: Its current point is θ, and its module tells which parameters belong to
            normalisation layers.
        columns: Directions ``[P, K]``.
        kind: See above.
        ignore: ``"biasbn"`` or ``None``.

    Returns:
        The scaled directions ``[P, K]``; a direction may be 0.

    Raises:
        InputError: If there is no such kind, or no such choice to ignore.

    Source:
        Li, Xu, Taylor, Studer & Goldstein 2018, Visualizing the loss landscape of neural nets,
        section 4.

    Example:
        >>> from curvops.risk import EmpiricalRisk
        >>> model = nn.Linear(3, 2)
        >>> risk = EmpiricalRisk(model, nn.MSELoss(), model, [(torch.eye(3), torch.zeros(3, 2))])
        >>> d = normalize(risk, torch.ones(8, 1), "filter")
        >>> weight, bias = risk.space.unflatten(d[:, 0])
        >>> torch.allclose(weight.norm(dim=1), model.weight.norm(dim=1)), bias.tolist()
        (True, [0.0, 0.0])
    """
    check_normalization(kind, ignore)
    if kind == "none":
        return columns
    if kind == "unit":
        return columns / _norms(columns, dims=(0,))
    owners = _owners(risk.model)
    theta = risk.space.unflatten(risk.theta)
    scaled = [
        torch.zeros_like(d)
        if ignore and is_bias_or_norm(name, w.ndim, owners.get(name))
        else _scale(d, w.unsqueeze(-1), kind, owners.get(name))
        for name, d, w in zip(risk.space.names, risk.space.unflatten(columns), theta, strict=True)
    ]
    return risk.space.flatten(scaled)


def is_bias_or_norm(name: str, ndim: int, owner: nn.Module | None = None) -> bool:
    """Tell whether a parameter is a bias, or one of a normalisation layer.

    Vectors and scalars count as such, as in the reference implementation of Li et al.; so does
    whatever belongs to a module that is called a norm, whose weight may have more axes.
    """
    is_norm = owner is not None and "norm" in type(owner).__name__.lower()
    return ndim <= 1 or is_norm or name.rpartition(".")[2] == "bias"


def _scale(d: Tensor, w: Tensor, kind: str, owner: nn.Module | None) -> Tensor:
    """Give each filter (or all) of ``d`` ``[*shape, K]`` the norm of that of ``w`` ``[*shape, 1]``.

    Only transposed convolutions have their output channels on the second axis.
    """
    axes = tuple(range(d.ndim - 1))
    if kind == "filter" and axes:
        filters = 1 if isinstance(owner, nn.modules.conv._ConvTransposeNd) else 0
        axes = tuple(axis for axis in axes if axis != filters)
    return d * (_norms(w, axes, zero=0.0) / _norms(d, axes))


def _norms(x: Tensor, dims: tuple[int, ...], zero: float = 1.0) -> Tensor:
    """Return norms over some axes, which are kept; norms of zero become ``zero``."""
    # No axes at all would mean every axis to torch.
    norms = torch.linalg.vector_norm(x, dim=dims, keepdim=True) if dims else x.abs()
    return norms.masked_fill(norms == 0, zero)


def _owners(model: nn.Module | None) -> dict[str, nn.Module]:
    """Return the module that each parameter belongs to, by the parameter's name."""
    if model is None:
        return {}
    return {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
