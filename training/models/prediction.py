"""Multi-token prediction: further blocks that predict the tokens after the next one, in training only.

DeepSeek-V3 (arXiv:2412.19437, section 2.2): block k takes what block k-1 made of position i and the embedding of token
i+k, and predicts token i+k+1 through the model's own embedding and output projection. Shape suffixes: B sequences, T
tokens, D hidden, K blocks before this one and the model itself.
"""

import torch
from torch import Tensor, nn

from training.config.schema import ModelConfig, Recompute
from training.models.axes import ALONE, Axes
from training.models.layers import DecoderBlock, TokenEmbedding
from training.models.learning import current_learning
from training.models.norm import RMSNorm


class PredictionBlock(nn.Module):
    """One of these blocks, between the model's last norm and its output projection.

    Hidden states of all depths go on in one tensor, one after the other along the batch: the projection runs them all.

    Args:
        config: the model.
        recompute: which activations are recomputed in backward.
        name: the canonical name.
        depth: k, from 1.
        has_experts: whether its feed-forward layer is one of experts.
        axes: the ranks that it shares work with.
    """

    def __init__(
        self, config: ModelConfig, recompute: Recompute, name: str, *, depth: int, has_experts: bool, axes: Axes = ALONE
    ) -> None:
        super().__init__()
        size, epsilon = config.hidden_size, config.norm_epsilon
        self.depth = depth
        self.hidden_norm = RMSNorm(size, epsilon)
        self.token_norm = RMSNorm(size, epsilon)
        self.merge = nn.Linear(2 * size, size, bias=False)
        self.block = DecoderBlock(config, recompute, f"{name}.block", has_experts=has_experts, axes=axes)
        self.norm = RMSNorm(size, epsilon)
        self._shared: list[TokenEmbedding] = []  # a list hides it from torch: the model's first layer owns it

    def share(self, embedding: nn.Module) -> None:
        """Look tokens up in this module from now on."""
        assert isinstance(embedding, TokenEmbedding)
        self._shared = [embedding]

    @property
    def embedding(self) -> TokenEmbedding:
        """The embedding that it shares."""
        [embedding] = self._shared
        return embedding

    def forward(self, hidden_KBTD: Tensor) -> Tensor:
        """Return the hidden states with those of this depth after them, [(K+1)·B, T, D]; unchanged outside of training.

        Args:
            hidden_KBTD: [K·B, T, D], those of the model itself first.
        """
        this = current_learning()
        if this is None or this.later is None:
            return hidden_KBTD
        ids_BT = this.later.ids_KBT[self.depth - 1].to(hidden_KBTD.device)
        before_BTD, tokens_BTD = hidden_KBTD[-len(ids_BT) :], self.embedding(ids_BT)
        merged_BTD = self.merge(torch.cat([self.hidden_norm(before_BTD), self.token_norm(tokens_BTD)], dim=-1))
        return torch.cat([hidden_KBTD, self.norm(self.block(merged_BTD))])


def decoder_block_of(layer: nn.Module) -> DecoderBlock | None:
    """Return the decoder block that a layer is or holds."""
    if isinstance(layer, PredictionBlock):
        return layer.block
    return layer if isinstance(layer, DecoderBlock) else None
