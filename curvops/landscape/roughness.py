r"""How rough a function is at a distance: from three values, without cancellation.

With :math:`l_0 = l(0)`, :math:`l_1 = l(h)`, :math:`l_2 = l(2h)`:

.. math::
    \Delta = l_0 - 2 l_1 + l_2, \qquad
    \mathrm{grit} = \frac{\Delta}{h}, \qquad
    \mathrm{curvature} = \frac{\Delta}{h^2}, \qquad
    \mathrm{roughness} = \frac{AB + BC}{AC} - 1,

where :math:`AB = \sqrt{(l_1 - l_0)^2 + h^2}`, :math:`BC = \sqrt{(l_2 - l_1)^2 + h^2}` and
:math:`AC = \sqrt{(l_2 - l_0)^2 + 4 h^2}`: how much longer the path through the middle point is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def second_difference(start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    r"""Return :math:`\Delta = l_0 - 2 l_1 + l_2`, as if it were computed exactly and rounded.

    Values that agree in almost every digit leave only their rounding in a plain difference. Here
    the rounding of each sum is caught and added back.

    Args:
        start: :math:`l_0`, float64, of any shape.
        middle: :math:`l_1`.
        end: :math:`l_2`.

    Returns:
        The differences; NaN where a value is not finite.

    Source:
        Knuth 1969, The Art of Computer Programming, vol. 2, section 4.2.2, Theorem B.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> float(second_difference(one, one + 2**-52, one)) == -(2.0**-51)
        True
    """
    ends, lost = _two_sum(start, end)
    rest, also_lost = _two_sum(ends, -2 * middle)
    return rest + (lost + also_lost)


def roughness(
    start: Tensor, middle: Tensor, end: Tensor, h: Tensor, difference: Tensor | None = None
) -> Tensor:
    r"""Return how much longer the path through the middle point is than the straight one.

    With slopes :math:`\alpha = (l_1 - l_0)/h` and :math:`\beta = (l_2 - l_1)/h`, in units of h:

    .. math::
        \frac{AB + BC}{AC} - 1 = \frac{2 Q}{AC \, (AB + BC + AC)}, \qquad
        Q = AB \cdot BC - \alpha \beta - 1
          = \frac{(\beta - \alpha)^2}{AB \cdot BC + \alpha \beta + 1},

    where the second form of Q has no cancellation for :math:`\alpha \beta \ge -1` and the first
    has none below. For small values this is
    :math:`\mathrm{grit}^2 / 8 (1 + \bar s^2)^2`, :math:`\bar s = (l_2 - l_0)/2h`.

    Args:
        start: :math:`l_0`, float64, of any shape.
        middle: :math:`l_1`.
        end: :math:`l_2`.
        h: The distance of two neighbours, positive.
        difference: :math:`\Delta` where it should not be that of the three values: what is asked
            then is the roughness of the same chord with that difference.

    Returns:
        The roughness, ≥ 0, with a relative error of a few roundings however small it is; NaN
        where a value is not finite.

    Example:
        >>> l = torch.tensor([0.0, 1e-9, 4e-9], dtype=torch.float64)  # s² at 0, h and 2h
        >>> h = torch.tensor(3e-5, dtype=torch.float64)
        >>> value = float(roughness(l[0], l[1], l[2], h))
        >>> abs(value / ((2e-9 / 3e-5) ** 2 / 8) - 1) < 1e-8
        True
    """
    if difference is None:
        delta = second_difference(start, middle, end)
        first, second = middle - start, end - middle
    else:
        delta = difference.expand_as(middle)
        first, second = (end - start - delta) / 2, (end - start + delta) / 2
    # In units of the largest side, so that steep slopes do not overflow when squared.
    unit = torch.maximum(h, torch.maximum(first.abs(), second.abs()))
    x, a, b, d = h / unit, first / unit, second / unit, delta / unit
    AB, BC, AC = torch.hypot(a, x), torch.hypot(b, x), torch.hypot(a + b, 2 * x)
    product, inner = AB * BC, a * b
    up = (x * d) ** 2 / (product + inner + x**2)
    down = product + (-inner - x**2)
    Q = torch.where(inner >= -(x**2), up, down)
    return 2 * Q / (AC * (AB + BC + AC))


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and what rounding took from it."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)
