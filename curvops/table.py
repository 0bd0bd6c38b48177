"""Tables for pandas, which is imported only when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from curvops.errors import MissingDependencyError


def data_frame(columns: Mapping[str, Any]) -> Any:
    """Return a ``pandas.DataFrame`` with a row for each entry of equally long columns.

    Args:
        columns: Sequences or tensors ``[N]`` by the names of the columns.

    Raises:
        MissingDependencyError: If pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise MissingDependencyError(
            'to_pandas() needs pandas, which is not installed: pip install "curvops[pandas]". '
            "Without it, to_dict() has the same numbers."
        ) from error
    return pandas.DataFrame(
        {name: v.tolist() if isinstance(v, Tensor) else list(v) for name, v in columns.items()}
    )
