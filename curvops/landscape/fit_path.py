r"""Train the bends of a path, so that the loss is low all along it.

.. math:: \min_{\text{bends}} \; \mathbb{E}_{t \sim U[0, 1]} \, L(w(t))

Every mini-batch draws its own t, and the gradient at w(t) reaches each bend with its coefficient
c(t). The ends stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Union

import torch
from torch import Tensor, nn
from tqdm import tqdm

from curvops.autodiff import Forward, FunctionalModel, unwrap
from curvops.errors import DataError, InputError, NonFiniteError
from curvops.landscape.objective import Objective
from curvops.landscape.path import BentPath, Path
from curvops.landscape.points import trainable
from curvops.landscape.storage import Stored
from curvops.losses import as_loss
from curvops.risk import EmpiricalRisk
from curvops.rng import PrivateRNG, as_seed
from curvops.table import data_frame
from curvops.tensors import Space

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
"""From the tensors to train, one for each parameter of each bend, to an optimizer of them."""

Source = Union[EmpiricalRisk, Iterable[Any]]
"""A risk, or a loader of mini-batches ``(X, y)``."""


@dataclass(frozen=True, eq=False)
class PathFit(Stored):
    """A path with trained bends, and how training went.

    Attributes:
        name: Which kind of path it is.
        points: The control points from start to end, in the format of the start.
        losses: The mean loss of the mini-batches of each epoch, each at its own t ``[E]``.
        num_gradients: How many mini-batch gradients it took.
        seed: Where the t, the order of the data and dropout came from.
        seconds: How long it took.
    """

    name: str
    points: tuple[Any, ...]
    losses: Tensor
    num_gradients: int
    seed: int
    seconds: float

    @property
    def path(self) -> BentPath:
        """The path."""
        return _kinds()[self.name](*self.points)

    def __str__(self) -> str:
        """Return the kind of the path, its bends, and how the loss fell."""
        return (
            f"{self.name} with {len(self.points) - 2} bends: mean loss "
            f"{float(self.losses[0]):.4g} in the first of {len(self.losses)} epochs, "
            f"{float(self.losses[-1]):.4g} in the last ({self.num_gradients} mini-batches)"
        )

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each epoch.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        return data_frame({"epoch": list(range(1, len(self.losses) + 1)), "loss": self.losses})


def annealed(progress: float) -> float:
    """Return the share of the learning rate at a share of the training: 1, then down to 1 %.

    Constant for the first half, falling linearly until nine tenths, and constant again.

    Source:
        Izmailov et al., Averaging weights leads to wider optima and better generalization, UAI
        2018, appendix.

    Example:
        >>> [round(annealed(p), 3) for p in (0.0, 0.5, 0.7, 0.9, 1.0)]
        [1.0, 1.0, 0.505, 0.01, 0.01]
    """
    return 1.0 - 0.99 * min(max((progress - 0.5) / 0.4, 0.0), 1.0)


def adam(tensors: list[Tensor]) -> torch.optim.Optimizer:
    """Return Adam with a learning rate of 5e-3."""
    return torch.optim.Adam(tensors, lr=5e-3)


def fit_path(
    risk: Source,
    path: Path,
    optimizer: MakeOptimizer = adam,
    epochs: int = 30,
    *,
    model: nn.Module | Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    forward: Forward | None = None,
    batch_size: int = 128,
    schedule: Callable[[float], float] | None = annealed,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> PathFit:
    r"""Return a path whose bends are trained, by stochastic gradients, to a low loss along it.

    .. math:: \min_{\text{bends}} \; \mathbb{E}_{t \sim U[0, 1]} \, L(w(t))

    The model is called as a function of its parameters, so any module will do, and is left as it
    is. Layers of batch normalisation use the statistics of the mini-batch.

    Args:
        risk: The risk. Or a loader of mini-batches ``(X, y)``, which may shuffle and augment;
            then ``model`` and ``loss`` say what to do with them.
        path: Where to start: :meth:`PolyChain.between <curvops.landscape.path.BentPath.between>`
            two points has its bends on the segment. Its ends do not move.
        optimizer: Makes an optimizer of a list of tensors, for example
            ``lambda tensors: torch.optim.SGD(tensors, lr=0.05, momentum=0.9)``.
        epochs: How often to go through the data.
        model: The module, or the function ``(params, X) -> prediction``, for a loader.
        loss: The loss ``(prediction, y) -> scalar``, for a loader.
        forward: How to call the module of a loader on X where ``model(X)`` does not fit.
        batch_size: Data in a mini-batch; a loader has its own.
        schedule: What the learning rates are multiplied by, as a function of the share of the
            training that is done; ``None`` leaves them alone.
        seed: Of the t, the order of the data, and dropout where the module is in training mode.
        progress: Show a bar over the epochs.

    Returns:
        The fit; ``fit.path`` is the path, in the format of its start.

    Raises:
        InputError: If the path has no bends, or an argument is impossible.
        ShapeError: If the path is not in the parameter space.
        DataError: If a loader can be read only once, or its batches are no pairs.
        NonFiniteError: If the loss is not finite any more.

    Source:
        Garipov et al., Loss surfaces, mode connectivity, and fast ensembling of DNNs, NeurIPS
        2018, Eq. (2) and Algorithm 1.

    Example:
        >>> import torch
        >>> from curvops.landscape.path import PolyChain
        >>> from curvops.risk import EmpiricalRisk
        >>> # Low on the ring of radius 1; the segment goes through its centre.
        >>> risk = EmpiricalRisk(
        ...     lambda p, x: x * (p["w"].norm() - 1),
        ...     torch.nn.MSELoss(),
        ...     {"w": torch.tensor([1.0, 0.0])},
        ...     [(torch.ones(1), torch.zeros(1))],
        ... )
        >>> start = PolyChain(*torch.tensor([[1.0, 0.0], [0.0, 0.1], [-1.0, 0.0]]))
        >>> fit = fit_path(risk, start, lambda p: torch.optim.SGD(p, lr=0.5), epochs=200)
        >>> bool(fit.path(0.5)[1] > 1)  # the chords of a chain leave the ring to both sides
        True
    """
    begin = perf_counter()
    seed = as_seed(seed)
    _check(path, epochs, batch_size, schedule)
    if isinstance(risk, EmpiricalRisk):
        if model is not None or loss is not None or forward is not None:
            raise InputError("model, loss and forward belong to a loader; a risk has its own.")
        moving = path.within(risk.space, risk.dtype, risk.device)
        dtypes = [p.dtype for p in risk.params.values()]
        objective = Objective.of_risk(risk, batch_size)
    else:
        moving, dtypes, objective = _of_loader(risk, path, model, loss, forward, epochs)
    bends = _Bends(moving, dtypes)
    optimize = optimizer(bends.tensors)
    if not isinstance(optimize, torch.optim.Optimizer):
        raise InputError(
            f"optimizer returned {type(optimize).__name__}; expected a function from a list of "
            "tensors to a torch.optim.Optimizer, such as lambda p: torch.optim.Adam(p, lr=1e-3)."
        )
    rates = [group["lr"] for group in optimize.param_groups]
    generator = torch.Generator().manual_seed(seed)
    means: list[float] = []
    steps = 0
    with (
        PrivateRNG(seed % 2**32).active(),
        tqdm(
            total=epochs, desc=f"fit {path.name}", unit="epoch", leave=False, disable=not progress
        ) as bar,
    ):
        for epoch in range(epochs):
            losses: list[Tensor] = []
            per_epoch = steps / epoch if epoch else 0.0
            for i, batch in enumerate(objective.epoch(generator)):
                if schedule is not None:
                    done = (epoch + (min(i / per_epoch, 1.0) if per_epoch else 0.0)) / epochs
                    for group, rate in zip(optimize.param_groups, rates, strict=True):
                        group["lr"] = rate * schedule(done)
                t = torch.rand(1, generator=generator, dtype=torch.float64)
                value, gradients = objective.gradient(bends.at(t), batch)
                bends.set_gradients(t, gradients)
                optimize.step()
                losses.append(value)
                steps += 1
            means.append(float(torch.stack(losses).double().mean()))
            if not torch.isfinite(torch.tensor(means[-1])):
                raise NonFiniteError(
                    f"the loss along the path is {means[-1]} in epoch {epoch + 1}. Use a smaller "
                    "learning rate, or ends whose loss is finite."
                )
            bar.set_postfix(loss=f"{means[-1]:.3g}")
            bar.update()
    fitted = moving.with_bends(bends.rows())
    return PathFit(
        name=path.name,
        points=tuple(_written(fitted, row) for row in fitted.control),
        losses=torch.tensor(means, dtype=torch.float64),
        num_gradients=steps,
        seed=seed,
        seconds=perf_counter() - begin,
    )


class _Bends:
    """The control points of a path as tensors of the parameters' shapes; the bends are trained."""

    def __init__(self, path: Path, dtypes: Sequence[torch.dtype]) -> None:
        self._path = path
        self._points = [
            [block.to(dtype).clone() for block, dtype in zip(path.space.unflatten(row), dtypes)]
            for row in path.control
        ]
        self._bends = self._points[1:-1]
        for bend in self._bends:
            for block in bend:
                block.requires_grad_()

    @property
    def tensors(self) -> list[Tensor]:
        """What is trained: every block of every bend."""
        return [block for bend in self._bends for block in bend]

    @torch.no_grad()
    def at(self, t: Tensor) -> dict[str, Tensor]:
        """Return the parameters at w(t), by name."""
        c = self._path.coefficients(t)[0].tolist()
        blocks = [
            sum((weight * block for weight, block in zip(c, column) if weight), 0 * column[0])
            for column in zip(*self._points, strict=True)
        ]
        return dict(zip(self._path.space.names, blocks, strict=True))

    def set_gradients(self, t: Tensor, gradients: Sequence[Tensor]) -> None:
        """Give each bend its share of the gradient at w(t)."""
        c = self._path.coefficients(t)[0, 1:-1].tolist()
        for weight, bend in zip(c, self._bends, strict=True):
            for block, gradient in zip(bend, gradients, strict=True):
                block.grad = weight * gradient

    def rows(self) -> Tensor:
        """Return the bends as rows ``[m, P]``."""
        flat = [
            torch.cat([block.detach().reshape(-1).to(self._path.control) for block in bend])
            for bend in self._bends
        ]
        return torch.stack(flat)


def _written(path: Path, row: Tensor) -> Any:
    """Return a point in the format of the start of a path."""
    return path.space.write(row.unsqueeze(1).clone(), path.format)


def _kinds() -> Mapping[str, type[BentPath]]:
    return {kind.name: kind for kind in BentPath.__subclasses__()}


def _of_loader(
    loader: Iterable[Any],
    path: Path,
    model: nn.Module | Callable[..., Any] | None,
    loss: Callable[..., Any] | None,
    forward: Forward | None,
    epochs: int,
) -> tuple[Path, list[torch.dtype], Objective]:
    """Return the path in the model's space, the dtypes there, and what to minimise."""
    if not isinstance(loader, Iterable):
        raise InputError(
            f"risk is {type(loader).__name__}; expected an EmpiricalRisk or a loader of (X, y)."
        )
    if model is None or loss is None or not callable(model):
        raise InputError("a loader does not know what is trained: pass model= and loss= too.")
    if isinstance(loader, Iterator) and epochs > 1:
        raise DataError(
            f"the loader is a one-shot {type(loader).__name__}, but there are {epochs} epochs. "
            "Pass a list or a DataLoader."
        )
    model = unwrap(model)
    if isinstance(model, nn.Module):
        own = trainable(model, "model")
        space, dtypes = Space.of(own), [p.dtype for p in own.values()]
        device = next(iter(own.values())).device
    else:
        space, device = path.space, path.control.device
        dtypes = [path.control.dtype] * len(space.names)
    moving = path.within(space, path.control.dtype, device)
    function = FunctionalModel(model, space.names, forward)
    return moving, dtypes, Objective.of_loader(loader, function, as_loss(loss), device)


def _check(
    path: Path, epochs: int, batch_size: int, schedule: Callable[[float], float] | None
) -> None:
    if not isinstance(path, Path) or not len(path.bends):
        what = f"a {path.name} without bends" if isinstance(path, Path) else type(path).__name__
        raise InputError(
            f"path is {what}, so there is nothing to train. Start from "
            "PolyChain.between(a, b) or Bezier.between(a, b)."
        )
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be an integer of 1 or more, got {value!r}.")
    if schedule is not None and not callable(schedule):
        raise InputError(f"schedule is {schedule!r}; expected a function of the progress, or None.")
