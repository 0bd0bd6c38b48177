r"""Gauss and Gauss–Radau rules from Lanczos coefficients: bounds of quadratic forms.

.. math:: z^T f(A) z = \int f \, d\mu_z \approx \|z\|^2 \sum_k w_k f(\theta_k)

Nodes are the eigenvalues of the tridiagonal matrix, weights the squared first components of its
eigenvectors. Where the even derivatives of f are negative and the odd ones positive, as for log,
Gauss is too large, and Gauss–Radau with a node below the spectrum too small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.block_lanczos import BlockLanczos
from curvops.linalg.lanczos import Tridiagonals


def gauss(T: Tridiagonals) -> tuple[Tensor, Tensor]:
    r"""Return the nodes and weights of the Gauss rules.

    Args:
        T: One tridiagonal matrix a column, of m steps.

    Returns:
        Nodes ``[K, m]``, ascending, and weights ``[K, m]`` that sum to one.

    Source:
        Golub & Meurant, Matrices, Moments and Quadrature with Applications, 2010, theorem 6.2.

    Example:
        >>> import torch
        >>> from curvops.linalg.lanczos import lanczos
        >>> from curvops.linalg.matrix import Products
        >>> A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> nodes, weights = gauss(lanczos(Products(A), torch.ones(2, 1).double(), 1))
        >>> nodes.round(decimals=6), weights
        (tensor([[2.]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    nodes, vectors = torch.linalg.eigh(T.dense())
    return nodes, vectors[:, 0].square()


def gauss_radau(T: Tridiagonals, node: float) -> tuple[Tensor, Tensor]:
    r"""Return the nodes and weights of the Gauss–Radau rules with one node prescribed.

    The last row of the tridiagonal matrix is followed by one more, whose diagonal entry
    :math:`a + \beta_m^2 e_m^T (T - aI)^{-1} e_m` makes ``a`` an eigenvalue.

    Args:
        T: One tridiagonal matrix a column, of m steps.
        node: The prescribed node a, below every eigenvalue of every ``T``.

    Returns:
        Nodes ``[K, m + 1]`` and weights ``[K, m + 1]`` that sum to one. The first node is a.

    Raises:
        InputError: If the node is not below every eigenvalue.

    Source:
        Golub & Meurant 2010, section 6.2.2.

    Example:
        >>> import torch
        >>> from curvops.linalg.lanczos import lanczos
        >>> from curvops.linalg.matrix import Products
        >>> A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> T = lanczos(Products(A), torch.ones(2, 1, dtype=torch.float64), 1)
        >>> nodes, weights = gauss_radau(T, 0.0)
        >>> [round(x, 6) for x in (*nodes[0].tolist(), *weights[0].tolist())]
        [0.0, 2.5, 0.2, 0.8]
    """
    values, vectors = torch.linalg.eigh(T.dense())
    _check_below(values, node)
    count, steps = T.alpha.shape
    last = T.beta[:, -1]
    pull = (vectors[:, -1].square() / (values - node)).sum(1) if steps else last
    augmented = torch.zeros(count, steps + 1, steps + 1, dtype=torch.float64)
    augmented[:, :-1, :-1] = T.dense()
    augmented[:, -1, -1] = node + last.square() * pull
    augmented[:, -1, -2] = augmented[:, -2, -1] = last
    nodes, vectors = torch.linalg.eigh(augmented)
    return nodes, vectors[:, 0].square()


def block_radau(space: BlockLanczos, node: float) -> Tensor:
    r"""Return T of a block Krylov space, followed by the block that prescribes a node.

    The added diagonal block :math:`aI + B_m E_m^T (T - aI)^{-1} E_m B_m^T` makes ``a`` an
    eigenvalue, as many times as the block is wide. For f = log, the leading block of f of this
    matrix is below :math:`Q^T f(A) Q`, and that of f(T) above.

    Args:
        space: The space, of ``s`` columns, the next block ``b`` wide.
        node: The prescribed node a, below every eigenvalue of T.

    Returns:
        The matrix ``[s + b, s + b]``.

    Raises:
        InputError: If the node is not below every eigenvalue.

    Source:
        Golub & Meurant 2010, section 6.6; Zimmerling, Druskin & Simoncini,
        Monotonicity, bounds and acceleration of block Gauss and Gauss–Radau quadrature, 2025.
    """
    T, coupling = space.dense(), space.couplings[-1]
    size, width = len(T), coupling.shape[0]
    if width == 0:
        return T
    values, vectors = torch.linalg.eigh(T)
    _check_below(values, node)
    out = coupling @ vectors[size - coupling.shape[1] :]
    augmented = torch.zeros(size + width, size + width, dtype=torch.float64)
    augmented[:size, :size] = T
    augmented[size:, size:] = (
        node * torch.eye(width, dtype=torch.float64) + (out / (values - node)) @ out.T
    )
    augmented[size:, size - coupling.shape[1] : size] = coupling
    augmented[size - coupling.shape[1] : size, size:] = coupling.T
    return augmented


def _check_below(values: Tensor, node: float) -> None:
    if values.numel() and not node < float(values.min()):
        raise InputError(
            f"the prescribed node {node:g} must be below every Ritz value; the smallest is "
            f"{float(values.min()):g}."
        )
