"""The linear maps of one mini-batch: jvp, vjp, hvp."""

from __future__ import annotations

from curvops.autodiff.keeper import Keeper
from curvops.autodiff.keeping import Columns, Keep, Keeping
from curvops.autodiff.linearization import Blocks, Linearization
from curvops.autodiff.memory import is_out_of_memory
from curvops.autodiff.model import Forward, FunctionalModel, unwrap
from curvops.autodiff.parameters import Params, common_dtype, resolve_parameters
from curvops.autodiff.per_sample import individual_gradients
from curvops.autodiff.product import BlockMap, ExtraStream, NoExtras, Product

__all__ = [
    "BlockMap",
    "Blocks",
    "Columns",
    "ExtraStream",
    "Forward",
    "FunctionalModel",
    "Keep",
    "Keeper",
    "Keeping",
    "Linearization",
    "NoExtras",
    "Params",
    "Product",
    "common_dtype",
    "individual_gradients",
    "is_out_of_memory",
    "resolve_parameters",
    "unwrap",
]
