import math

import torch

from training.models.loss import IGNORED_LABEL, summed_cross_entropy

B, T, V = 4, 7, 11


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(B, T, V, generator=generator) * 3
    labels_BT = torch.randint(0, V, (B, T), generator=generator)
    labels_BT[0, 5:] = IGNORED_LABEL  # padding on the right
    labels_BT[1, :4] = IGNORED_LABEL  # a context that is not scored
    labels_BT[2, 1:-1] = IGNORED_LABEL
    return logits_BTV, labels_BT


def plain_logprobs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> list[list[float]]:
    """log p of the valid targets of each sequence, without torch."""
    rows = []
    for logits_TV, labels_T in zip(logits_BTV.tolist(), labels_BT.tolist(), strict=True):
        row = []
        for logits_V, label in zip(logits_TV, labels_T, strict=True):
            if label != IGNORED_LABEL:
                largest = max(logits_V)
                log_sum = largest + math.log(sum(math.exp(value - largest) for value in logits_V))
                row.append(logits_V[label] - log_sum)
        rows.append(row)
    return rows


def test_the_loss_is_a_sum_over_valid_targets() -> None:
    logits, labels = logits_and_labels()
    expected = -sum(map(sum, plain_logprobs(logits, labels)))
    torch.testing.assert_close(summed_cross_entropy(logits, labels), torch.tensor(expected), rtol=1e-6, atol=0)


def test_the_loss_of_a_batch_is_the_sum_of_its_parts() -> None:
    logits, labels = logits_and_labels()
    parts = sum(summed_cross_entropy(logits[b : b + 1], labels[b : b + 1]) for b in range(B))
    torch.testing.assert_close(summed_cross_entropy(logits, labels), torch.as_tensor(parts))


def test_the_loss_of_bf16_logits_is_computed_in_fp32() -> None:
    logits, labels = logits_and_labels()
    loss = summed_cross_entropy(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, summed_cross_entropy(logits.bfloat16().float(), labels))
