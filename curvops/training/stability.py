r"""Where an optimizer on a quadratic becomes unstable: the number to put beside the sharpness.

=============================  ====================================  ==============================
optimizer                      matrix                                stable while λ_max is below
=============================  ====================================  ==============================
SGD, momentum β, damping τ     H                                     (2 + 2β) / ((1 − τ) η)
SGD, Nesterov                  H                                     (2 + 2β) / ((1 + 2β) η)
RMSprop, momentum β            P⁻¹H, P = √v + ε                      (2 + 2β) / η
Adagrad                        P⁻¹H, P = √s + ε                      2 / η
Adam, AdamW                    P⁻¹H, P = (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε)  (2 + 2β₁) / ((1 − β₁) η)
=============================  ====================================  ==============================

A coupled weight decay λ adds λI to H; parameter groups with step sizes of their own are part of P.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvops.training.update import innermost


@dataclass(frozen=True)
class Stability:
    """The bound of stability of an optimizer at its current state.

    Attributes:
        learning_rate: η, the largest of the parameter groups; ``None`` if it has none.
        threshold: What λ_max of the matrix is compared with; ``None`` where it is not known.
        inverse: The diagonal of P⁻¹ by parameter, up to η; ``None`` for the Hessian itself.
        shift: λ, added to the Hessian.
        note: Why there is no threshold, or what it leaves out.
    """

    learning_rate: float | None
    threshold: float | None
    inverse: Sequence[Tensor] | None = None
    shift: float = 0.0
    note: str = ""


def stability(optimizer: Any, params: Mapping[str, nn.Parameter]) -> Stability:
    """Return where an optimizer becomes unstable on a quadratic.

    Args:
        optimizer: SGD, Adam, AdamW, RMSprop or Adagrad of torch; of others, the threshold is not
            known.
        params: The trained parameters.

    Source:
        Cohen et al. 2021, Gradient descent on neural networks typically occurs at the edge of
        stability (arXiv:2103.00065). Cohen et al. 2022, Adaptive gradient methods at the edge of
        stability (arXiv:2207.14484).

    Example:
        >>> model = nn.Linear(2, 1)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        >>> round(stability(sgd, dict(model.named_parameters())).threshold, 10)
        30.0
    """
    inner = innermost(optimizer)
    groups = getattr(inner, "param_groups", None)
    if not groups or any("lr" not in group for group in groups):
        return Stability(None, None, note="the optimizer has no step size to be seen")
    group_of = {id(p): group for group in groups for p in group["params"]}
    used = [group_of[id(p)] for p in params.values() if id(p) in group_of]
    if len(used) < len(params):
        return Stability(None, None, note="the optimizer does not hold all trained parameters")
    eta = max(float(group["lr"]) for group in used)
    rule = _RULES.get(type(inner))
    first = used[0]
    if rule is None:
        note = f"no threshold is known for {type(inner).__name__}"
    elif any(_hyper(group) != _hyper(first) for group in used):
        note = "parameter groups differ in more than their step sizes"
    elif first.get("maximize"):
        note = "the optimizer maximises"
    elif eta <= 0.0:
        note = "the step size is zero"
    else:
        ratios = [float(group["lr"]) / eta for group in used]
        found: Stability = rule(inner, eta, ratios, list(params.values()), first)
        return found
    return Stability(eta, None, note=note)


def _hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in all groups."""
    names = (
        "momentum",
        "dampening",
        "nesterov",
        "weight_decay",
        "betas",
        "eps",
        "alpha",
        "amsgrad",
    )
    return {name: group[name] for name in names if name in group}


def _sgd(
    optimizer: Any, eta: float, ratios: list[float], params: list[nn.Parameter], group: Any
) -> Stability:
    beta, tau = float(group["momentum"]), float(group["dampening"])
    reach = (1.0 + 2.0 * beta) if group["nesterov"] else (1.0 - tau if beta else 1.0)
    threshold = (2.0 + 2.0 * beta) / (reach * eta) if reach > 0 else None
    inverse = None
    if any(r != 1.0 for r in ratios):
        inverse = [torch.full_like(p.detach(), r) for p, r in zip(params, ratios)]
    return Stability(eta, threshold, inverse, float(group["weight_decay"]))


def _adam(
    optimizer: Any, eta: float, ratios: list[float], params: list[nn.Parameter], group: Any
) -> Stability:
    beta1, beta2 = (float(b) for b in group["betas"])
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
    slot = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"

    def diagonal(state: Any) -> Tensor:
        t = float(state["step"])
        root: Tensor = (state[slot] / (1.0 - beta2**t)).sqrt()
        return root.add(float(group["eps"])).mul(1.0 - beta1**t)

    threshold = (2.0 + 2.0 * beta1) / ((1.0 - beta1) * eta)
    decay = 0.0 if decoupled else float(group["weight_decay"])
    return _preconditioned(optimizer, eta, ratios, params, diagonal, slot, threshold, decay)


def _rmsprop(
    optimizer: Any, eta: float, ratios: list[float], params: list[nn.Parameter], group: Any
) -> Stability:
    def diagonal(state: Any) -> Tensor:
        square: Tensor = state["square_avg"]
        if group["centered"]:
            square = (square - state["grad_avg"].square()).clamp(min=0.0)
        return square.sqrt() + float(group["eps"])

    threshold = (2.0 + 2.0 * float(group["momentum"])) / eta
    decay = float(group["weight_decay"])
    return _preconditioned(optimizer, eta, ratios, params, diagonal, "square_avg", threshold, decay)


def _adagrad(
    optimizer: Any, eta: float, ratios: list[float], params: list[nn.Parameter], group: Any
) -> Stability:
    steps = float(optimizer.state[params[0]]["step"]) if params[0] in optimizer.state else 0.0
    rate = eta / (1.0 + steps * float(group["lr_decay"]))

    def diagonal(state: Any) -> Tensor:
        root: Tensor = state["sum"].sqrt()
        return root + float(group["eps"])

    decay = float(group["weight_decay"])
    return _preconditioned(optimizer, rate, ratios, params, diagonal, "sum", 2.0 / rate, decay)


def _preconditioned(
    optimizer: Any,
    eta: float,
    ratios: list[float],
    params: list[nn.Parameter],
    diagonal: Any,
    slot: str,
    threshold: float,
    shift: float,
) -> Stability:
    """Return the bound for a preconditioner made of an optimizer's state."""
    inverse = []
    for p, ratio in zip(params, ratios, strict=True):
        state = optimizer.state.get(p, {})
        if slot not in state or float(state.get("step", 1)) < 1:
            return Stability(eta, None, note="the optimizer has no preconditioner yet")
        entries: Tensor = diagonal(state).to(p.dtype)
        if not bool((entries > 0).all()):
            return Stability(eta, None, note="the optimizer's preconditioner is singular")
        inverse.append(ratio / entries)
    return Stability(eta, threshold, inverse, shift)


_RULES: dict[type, Any] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}
