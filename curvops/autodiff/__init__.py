"""The linear maps of one mini-batch: jvp, vjp, hvp."""

from __future__ import annotations

from curvops.autodiff.linearization import Blocks, Linearization
from curvops.autodiff.model import Forward, FunctionalModel, unwrap
from curvops.autodiff.parameters import Params, common_dtype, resolve_parameters
from curvops.autodiff.per_sample import individual_gradients

__all__ = [
    "Blocks",
    "Forward",
    "FunctionalModel",
    "Linearization",
    "Params",
    "common_dtype",
    "individual_gradients",
    "resolve_parameters",
    "unwrap",
]
