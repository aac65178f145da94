"""The same small data as the loader's tests."""

from tests.unit.data.conftest import prepared, small_data

__all__ = ["prepared", "small_data"]
