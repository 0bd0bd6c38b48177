"""The choices a user has about what is kept between products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curvops.data import parse_bytes
from curvops.errors import InputError

Keep = Literal["auto", "residuals", "graph", "layers", "nothing"]
Columns = Literal["auto", "loop", "vmap"] | int


@dataclass(frozen=True)
class Keeping:
    """How products are kept; every choice can be fixed by hand.

    Attributes:
        keep: ``"residuals"``, ``"graph"``, ``"layers"``, ``"nothing"``, or ``"auto"``.
        columns: ``"loop"``, ``"vmap"``, a number of columns per vmap, or ``"auto"``.
        memory_budget: Bytes that what is kept may take, or text such as ``"2GB"``; half of the
            device's free memory by default.
        compile: Compile the tangent graphs (kept residuals only), or ``"auto"``.
    """

    keep: Keep = "auto"
    columns: Columns = "auto"
    memory_budget: int | str | None = None
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Validate the choices."""
        if self.keep not in ("auto", "residuals", "graph", "layers", "nothing"):
            raise InputError(
                'keep must be "auto", "residuals", "graph", "layers" or "nothing", got '
                f"{self.keep!r}."
            )
        width = self.columns
        positive = isinstance(width, int) and not isinstance(width, bool) and width > 0
        if not positive and width not in ("auto", "loop", "vmap"):
            raise InputError(
                f'columns must be "auto", "loop", "vmap" or a positive number, got {width!r}.'
            )
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget, "memory_budget")
        if self.compile not in (True, False, "auto"):
            raise InputError(f'compile must be True, False or "auto", got {self.compile!r}.')
