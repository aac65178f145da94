"""How much the tests of many layouts take on: each kind of thing once in `make test`, all of it in `make drill`."""

import os

IS_WHOLE = os.environ.get("AUTARKY_ALL_LAYOUTS") == "1"
"""Whether it is all of it. Workers inherit the variable from the tests that start them."""
