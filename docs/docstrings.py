"""What the API reference does not know about our docstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`[~.]?")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Translate what editors and readers of the source understand, but the parser does not."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Show roles (``:class:`Space```) as code, and a single example as examples."""
        if obj.docstring:
            text = ROLE.sub("`", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", text)
