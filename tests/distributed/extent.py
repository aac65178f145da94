"""How much the tests of many layouts take on: each kind of thing once in `make test`, all of it in `make drill`."""

import os
from collections.abc import Mapping
from typing import TypeVar

VARIABLE = "AUTARKY_ALL_LAYOUTS"
"""Set to 1, all of it. Workers inherit it from the tests that start them."""
IS_WHOLE = os.environ.get(VARIABLE) == "1"


Layout = TypeVar("Layout")


def chosen(layouts: Mapping[str, Layout], left_out: set[str]) -> dict[str, Layout]:
    """Return the layouts by name, without those that are left out unless all are wanted."""
    assert left_out <= layouts.keys(), left_out - layouts.keys()
    return {name: layout for name, layout in layouts.items() if IS_WHOLE or name not in left_out}
