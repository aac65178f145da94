"""The layers of a decoder, as a pipeline sees them: embedding, block, output projection.

Shape suffixes: B sequences, T tokens, D hidden, V vocabulary.
Every layer takes one tensor and returns one, so that a pipeline can cut anywhere between them.
Parameter names and orientations are those of Hugging Face's Llama, apart from the prefix (training/models/decoder.py).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config.schema import ModelConfig, Recompute
from training.models.attention import make_attention
from training.models.axes import ALONE, Axes
from training.models.dropout import DropoutKeys, current_keys, drop_elements
from training.models.experts import Experts, MixtureOfExperts
from training.models.feed_forward import FeedForward
from training.models.inference import wanted_positions
from training.models.learning import LearningPass, current_learning, logits_or_losses
from training.models.norm import RMSNorm
from training.models.recompute import run_block
from training.models.routing_log import RoutingNote, current_note


class TokenEmbedding(nn.Module):
    """One [V, D] matrix used both ways: ids -> hidden, and, where it is tied, hidden -> logits.

    Both uses go through forward, because ZeRO-3 gathers a weight when its module is called and a tied pipeline layer
    is the same module called at the other end.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, ids_BT_or_hidden_BTD: Tensor) -> Tensor:
        """Return hidden [B, T, D] for integer ids [B, T]; for hidden states what `OutputProjection` does."""
        if ids_BT_or_hidden_BTD.is_floating_point():
            return logits_or_losses(wanted_positions(ids_BT_or_hidden_BTD), self.weight)
        return F.embedding(ids_BT_or_hidden_BTD, self.weight)


class OutputProjection(nn.Module):
    """Untied projection of hidden states to logits, or to the loss where logits are never whole."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return logits [B, T, V]; in an inference pass those of the wanted positions, [N, V].

        In a learning pass of more tokens than a chunk it is the summed losses; see `models/learning.py`.
        """
        return logits_or_losses(wanted_positions(hidden_BTD), self.weight)


class DecoderBlock(nn.Module):
    """Pre-norm block: attention and feed-forward, each added to the residual stream.

    In training each branch's output passes dropout first (arXiv:1706.03762, section 5.4; GPT-2's resid_pdrop).

    Args:
        config: the model.
        recompute: which activations are recomputed in backward.
        layer_name: the canonical name, which its dropout masks follow from.
        has_experts: whether its feed-forward layer is one of experts.
        axes: the ranks that it shares work with.
    """

    def __init__(
        self,
        config: ModelConfig,
        recompute: Recompute,
        layer_name: str,
        *,
        has_experts: bool = False,
        axes: Axes = ALONE,
    ) -> None:
        super().__init__()
        self.layer_name = layer_name
        self.dropout = config.dropout
        self.recompute = recompute
        self.axes = axes
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.self_attn = make_attention(config, axes)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = MixtureOfExperts(config, axes) if has_experts else FeedForward(config.hidden_size, config.ffn_size)

    @property
    def experts_apart(self) -> Experts | None:
        """Experts that are spread over ranks and so no part of this module; see `MixtureOfExperts`."""
        return self.mlp.experts_apart if isinstance(self.mlp, MixtureOfExperts) else None

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the residual stream after the block, [B, T, D].

        Raises:
            RuntimeError: there is dropout, and the forward runs in training mode outside of `dropout_of`.
        """
        # Read here and handed on: the second forward of recompute runs in backward, outside of dropout_of and learning.
        keys = current_keys(self.layer_name) if self.training and self.dropout > 0 else None
        note = current_note(self.layer_name) if isinstance(self.mlp, MixtureOfExperts) else None
        compute = partial(self._compute, keys=keys, note=note, learns=current_learning())
        return run_block(compute, hidden_BTD, self.recompute)

    def _compute(
        self, hidden_BTD: Tensor, *, keys: DropoutKeys | None, note: RoutingNote | None, learns: LearningPass | None
    ) -> Tensor:
        attended_BTD = self.self_attn(self.input_layernorm(hidden_BTD), learns)
        hidden_BTD = hidden_BTD + self._drop(attended_BTD, keys, "self_attn")
        normed_BTD = self.post_attention_layernorm(hidden_BTD)
        fed_forward_BTD = self.mlp(normed_BTD, note) if note is not None else self.mlp(normed_BTD)
        return hidden_BTD + self._drop(fed_forward_BTD, keys, "mlp")

    def _drop(self, branch_BTD: Tensor, keys: DropoutKeys | None, branch: str) -> Tensor:
        if keys is None:
            return branch_BTD
        axis, place = self.axes.sequence, f"{self.layer_name}.{branch}"
        return drop_elements(branch_BTD, self.dropout, keys, place, part=axis.place, num_parts=axis.size)
