"""What reaches the kernels of accelerators. The kernels themselves run on none of the machines of these tests."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tests.unit.models.live_bytes import LiveBytes
from training.config.schema import AttentionImplementation
from training.models.attend import attend, choose
from training.models.document_attention import block_mask, flash_attend, flex_attend
from training.models.documents import Documents

CPU = torch.device("cpu")
AUTO, SDPA, FLEX, FLASH = AttentionImplementation


def documents_of(row: list[int], num_tokens: int, num_sequences: int = 2) -> Documents:
    """Return sequences cut after these tokens, each but the first a little later."""
    numbers_T = torch.arange(len(row) + 1).repeat_interleave(torch.tensor([*row, num_tokens - sum(row)]))
    return Documents(torch.stack([numbers_T.roll(5 * n) if n else numbers_T for n in range(num_sequences)]))


def blocks(mask: BlockMask) -> list[list[list[int]]]:
    """Return of every row of blocks the places seen in part, and those seen whole."""
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    found = []
    for counts, places in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        rows = places.flatten(0, 2)
        found.append([sorted(row[:count].tolist()) for row, count in zip(rows, counts.flatten(), strict=True)])
    return found


@settings(deadline=None, max_examples=40)
@given(
    num_tokens=st.integers(120, 700),
    cuts=st.lists(st.integers(1, 300), max_size=5),
)
def test_the_block_mask_is_the_one_that_torch_makes_of_the_whole_mask(num_tokens: int, cuts: list[int]) -> None:
    row: list[int] = []
    for cut in cuts:
        if sum(row) + cut < num_tokens:
            row.append(cut)
    documents = documents_of(row, num_tokens)
    numbers_BT = documents.numbers_BT

    def sees(sequence: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (numbers_BT[sequence, query] == numbers_BT[sequence, key])

    expected = create_block_mask(sees, 2, None, num_tokens, num_tokens, device="cpu")
    assert blocks(block_mask(documents, CPU)) == blocks(expected)


def test_the_block_mask_of_32k_tokens_takes_no_mask_of_tokens_by_tokens() -> None:
    documents = documents_of([1000, 20_000], 32_768, num_sequences=1)
    with LiveBytes() as live:
        block_mask(documents, CPU)
    assert live.highest < 32_768**2 / 100


def packed(num_tokens: int = 200, value_size: int = 16) -> tuple[tuple[Tensor, Tensor, Tensor], Documents]:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, num_tokens, 16), torch.randn(2, 2, num_tokens, 16), torch.randn(2, 2, num_tokens, 16)
    return (q, k, v[..., :value_size]), documents_of([70, 1, 90], num_tokens)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("value_size", [16, 8])
def test_flex_attention_gives_what_documents_by_themselves_give(value_size: int, scale: float | None) -> None:
    qkv, documents = packed(value_size=value_size)
    expected = attend(*qkv, documents=documents, scale=scale)
    torch.testing.assert_close(
        flex_attend(*qkv, documents, scale=scale, kernel=flex_attention), expected, rtol=1e-5, atol=1e-5
    )


def each_length(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, most: int, most_keys: int, **options: object
) -> Tensor:
    """What torch's varlen_attn is documented to compute, for a causal window."""
    assert starts.dtype == torch.int32
    assert torch.equal(starts, key_starts)
    assert (most, most_keys) == (int(starts.diff().max()),) * 2
    assert options["window_size"] == (-1, 0)
    lengths = starts.diff().tolist()
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in part),
                is_causal=True,
                scale=options["scale"],  # pyright: ignore[reportArgumentType]
                enable_gqa=bool(options["enable_gqa"]),
            )[0].transpose(0, 1)
            for part in parts
        ]
    )


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("value_size", [16, 8])
def test_flash_attention_gets_packed_documents_and_gives_them_back_in_place(
    value_size: int, scale: float | None
) -> None:
    qkv, documents = packed(value_size=value_size)
    expected = attend(*qkv, documents=documents, scale=scale)
    torch.testing.assert_close(
        flash_attend(*qkv, documents, scale=scale, kernel=each_length), expected, rtol=1e-5, atol=1e-5
    )


def test_torch_takes_the_call_of_its_flash_attention() -> None:
    (q, k, v), documents = packed()
    mode = FakeTensorMode()  # checks shapes and arguments against torch's operator, and computes nothing
    fake = q, k, v = tuple(mode.from_tensor(x.bfloat16().requires_grad_()) for x in (q, k, v))
    with mode:
        mixed = flash_attend(q, k, v, documents, scale=0.3)
        mixed.sum().backward()
    assert mixed.shape == q.shape
    assert [x.grad is not None and x.grad.shape == x.shape for x in fake] == [True] * 3


@pytest.mark.parametrize(
    ("on_cpu", "dtype", "head_size", "has_documents", "expected"),
    [
        (True, torch.bfloat16, 128, True, SDPA),
        (False, torch.bfloat16, 128, False, SDPA),
        (False, torch.bfloat16, 128, True, FLASH),
        (False, torch.bfloat16, 576, True, FLEX),
        (False, torch.float32, 128, True, FLEX),
    ],
)
def test_auto_chooses_what_keeps_memory_linear(
    on_cpu: bool, dtype: torch.dtype, head_size: int, has_documents: bool, expected: AttentionImplementation
) -> None:
    def chosen(wanted: AttentionImplementation) -> AttentionImplementation:
        return choose(wanted, on_cpu=on_cpu, dtype=dtype, head_size=head_size, has_documents=has_documents)

    assert chosen(AUTO) is expected
    assert [chosen(wanted) for wanted in (SDPA, FLEX, FLASH)] == [SDPA, FLEX, FLASH]
