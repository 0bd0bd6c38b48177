"""The forms a batch's map can take, and which of them is fastest on the model at hand.

* *graph*: the autograd graph of the batch stays alive; no set-up beyond building it;
* *residuals*: the product is traced and split (see :mod:`curvops.autodiff.tracing`);
* *layers*: sums of rank-one terms from layer inputs and output gradients, for the Fisher matrices
  of models of linear and convolution layers (see :mod:`curvops.autodiff.rank_one`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from curvops.autodiff.batch_maps import TRACE_ERRORS, BatchMap, GraphMap, ResidualMap, Tracer
from curvops.autodiff.keeping import Keeping
from curvops.autodiff.linearization import Blocks, Linearization
from curvops.autodiff.measure import Key, can_compile, interleaved_medians
from curvops.autodiff.memory import is_out_of_memory
from curvops.autodiff.model import FunctionalModel
from curvops.autodiff.product import Product
from curvops.autodiff.rank_one import RankOneMap, rank_one_map
from curvops.errors import DifferentiationError
from curvops.losses import Loss
from curvops.nesting import tensors_of

Form = Literal["graph", "residuals", "layers"]

GAIN = 0.25
"""What tracing or compiling may be expected to save of a product."""
_TRACE_SECONDS = 2.0
_COMPILE_SECONDS = 25.0


class Forms:
    """Builds the maps of batches, in the form that was asked for or measured fastest.

    Args:
        model: The model.
        loss: The loss, or ``None``.
        product: The product of one batch.
        options: The user's choices.

    Attributes:
        form: The form that maps are built in now.
        tracer: What traces, once something has been traced.
    """

    def __init__(
        self, model: FunctionalModel, loss: Loss | None, product: Product, options: Keeping
    ) -> None:
        self._model, self._loss, self._product, self._options = model, loss, product, options
        keep = options.keep
        self.form: Form = keep if keep in ("residuals", "layers") else "graph"
        self.tracer: Tracer | None = None
        self._tried_tracing = keep not in ("auto", "nothing")
        self._tried_layers = keep != "auto"
        self._has_layers: bool | None = None
        self._verified: set[tuple[Any, ...]] = set()

    def pays_to_trace(self, num_products: int, seconds: float) -> bool:
        """Tell whether products to come save what tracing costs."""
        return not self._tried_tracing and num_products * seconds * GAIN > _TRACE_SECONDS

    def build(self, lin: Linearization, extras: list[Tensor]) -> BatchMap:
        """Return the map of a batch.

        Raises:
            DifferentiationError: If the model does not allow the form that was asked for.
        """
        if self.form == "layers":
            layers = self._layers(lin, extras)
            if layers is not None:
                return layers
            if self._options.keep == "layers":
                raise DifferentiationError(
                    'keep="layers" needs a Fisher matrix with one term per datum, of a model '
                    'whose parameters are those of linear and convolution layers. Use "auto".'
                )
            self.form = "graph"
        if self.form == "residuals":
            try:
                return self._residuals(lin, extras)
            except TRACE_ERRORS as error:
                if is_out_of_memory(error):
                    raise
                _ = lin.prediction  # what this raises is the model's own error
                if self._options.keep == "residuals":
                    raise DifferentiationError(
                        f"the product of this model cannot be traced ({error}). Use "
                        'keep="graph" or "auto".'
                    ) from error
                self.form = "graph"
        return GraphMap(lin, self._product.chain(lin, extras))

    def try_layers(self, lin: Linearization, extras: list[Tensor]) -> bool:
        """Settle for the layers' form if it is there and faster; tell whether it was measured."""
        if self._tried_layers or self._product.scores is None:
            return False
        self._tried_layers = True
        candidate = self._layers(lin, extras)
        if candidate is None:
            return False
        v = self._product.example(lin)
        maps: dict[Form, BatchMap] = {"layers": candidate, "graph": self._graph(lin, extras)}
        seconds = interleaved_medians({k: partial(m.one, v) for k, m in maps.items()}, rounds=3)
        self.form = min(seconds, key=seconds.__getitem__)
        return True

    def choose(
        self,
        lin: Linearization,
        extras: list[Tensor],
        shared: Sequence[Tensor],
        budget: int | None,
        together: bool,
        num_batches: int,
        num_products: int,
    ) -> None:
        """Trace, measure all forms on a first batch and settle for the fastest that fits.

        Args:
            lin: The batch.
            extras: What goes with it.
            shared: What is held anyway.
            budget: Bytes that may be kept; ``None`` if nothing is, so that building counts too.
            together: Whether memory suffices for all forms of one batch at a time.
            num_batches: How many batches there are.
            num_products: How many products are to come.
        """
        self._tried_tracing = True
        try:
            size = self._residuals(lin, extras).num_bytes(shared)
        except TRACE_ERRORS as error:
            if is_out_of_memory(error):
                raise
            _ = lin.prediction  # what this raises is the model's own error
            return
        forms: dict[tuple[Form, bool], Callable[[], BatchMap]] = {
            ("residuals", True): partial(self._residuals, lin, extras, True),
            ("graph", False): partial(self._graph, lin, extras),
        }
        if budget is None or size * num_batches <= budget:
            forms["residuals", False] = partial(self._residuals, lin, extras, False)
        if self.form == "layers":
            forms["layers", False] = partial(self.build, lin, extras)
        v = self._product.example(lin)
        if budget is None:
            tasks = {k: partial(_built_and_run, build, v) for k, build in forms.items()}
            seconds = interleaved_medians(tasks)
        else:
            seconds = _medians(forms, v, together)
        assert self.tracer is not None
        self.form, self.tracer.lean = min(seconds, key=seconds.__getitem__)
        if self.form == "residuals" and self._options.compile == "auto":
            total = seconds[self.form, self.tracer.lean] * num_batches * num_products
            if total * GAIN > _COMPILE_SECONDS and can_compile():
                self.tracer.compiled = self._gains_by_compiling(lin, extras, v, together)

    def _gains_by_compiling(
        self, lin: Linearization, extras: list[Tensor], v: Blocks, together: bool
    ) -> bool:
        """Compile, and measure whether that was good for anything: for convolutions it is not."""
        builds = {c: partial(self._compiled, lin, extras, c) for c in (False, True)}
        try:
            seconds = _medians(builds, v, together)
        except TRACE_ERRORS as error:  # what torch raises where it cannot compile
            if is_out_of_memory(error):
                raise
            return False
        return seconds[True] < seconds[False]

    def _compiled(self, lin: Linearization, extras: list[Tensor], compiled: bool) -> ResidualMap:
        assert self.tracer is not None
        self.tracer.compiled = compiled
        return self._residuals(lin, extras)

    def _residuals(
        self, lin: Linearization, extras: list[Tensor], lean: bool | None = None
    ) -> ResidualMap:
        if self.tracer is None:
            names = list(self._model.names)
            self.tracer = Tracer(self._model, self._loss, self._product, names)
            self.tracer.compiled = self._options.compile is True
        if lean is not None:
            self.tracer.lean = lean
        return self.tracer(lin, extras)

    def _graph(self, lin: Linearization, extras: list[Tensor]) -> BatchMap:
        fresh = Linearization(lin.predict, self._loss, lin.params, lin.batch)
        return GraphMap(fresh, self._product.chain(fresh, extras))

    def _layers(self, lin: Linearization, extras: list[Tensor]) -> RankOneMap | None:
        """Return the map from layer inputs, verified on the first batch of every shape.

        One datum alone shows no influence of others, and what is odd may be so for some lengths.
        Layers are compared once: rounding in sums over a batch would refuse one in many.
        """
        make = self._product.scores
        if make is None or self._has_layers is False:
            return None
        shape = lin.batch.size, *(t.shape for t in tensors_of(lin.batch.X))
        verify = shape not in self._verified
        found = rank_one_map(
            self._model,
            lin,
            lambda at: make(at, extras),
            verify=verify,
            trusted=bool(self._verified),
        )
        self._has_layers = found is not None
        if found is not None and not found.is_constant:
            self._verified.add(shape)
        return found


def _medians(
    builds: Mapping[Key, Callable[[], BatchMap]], v: Blocks, together: bool
) -> dict[Key, float]:
    """Return the seconds of a product with each map; one after the other if memory is short."""
    if together:
        return interleaved_medians({k: partial(build().one, v) for k, build in builds.items()})
    seconds: dict[Key, float] = {}
    for k, build in builds.items():
        seconds |= interleaved_medians({k: partial(build().one, v)})
    return seconds


def _built_and_run(build: Callable[[], BatchMap], v: Blocks) -> Blocks:
    return build().one(v)
