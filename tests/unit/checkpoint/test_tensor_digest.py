"""The digest that is computed on the tensor's device is the one of training/checkpoint/digest.py."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.checkpoint.digest import BLOCK, digest
from training.checkpoint.tensor_digest import tensor_digest
from training.fault_tolerance.poisoned import flip_bit


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 2, 777, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]))
def test_of_fp32_it_is_the_digest_that_checkpoints_have(seed: int, numel: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, numel, dtype=np.uint32)
    assert tensor_digest(torch.from_numpy(bits.view(np.float32))) == digest(bits, 0)


def test_more_than_what_is_widened_at_once() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 40 * BLOCK + 3, dtype=np.uint32)
    assert tensor_digest(torch.from_numpy(bits.view(np.float32))) == digest(bits, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(data=st.data())
def test_any_one_bit_changes_it_and_changing_it_back_too(dtype: torch.dtype, data: st.DataObject) -> None:
    values = torch.randn(300, dtype=dtype)
    before = tensor_digest(values)
    element, bit = data.draw(st.integers(0, 299)), data.draw(st.integers(0, 8 * values.element_size() - 1))
    flip_bit(values, element=element, bit=bit)
    assert tensor_digest(values) != before
    flip_bit(values, element=element, bit=bit)
    assert tensor_digest(values) == before
