"""Feed-forward layers of routed experts, on one rank or spread over the ranks of the expert axis.

Shapes: N tokens, D hidden, E experts of the block (X of them on this rank), K of them per token, I an expert's width,
R rows: one for each pair of a token and one of its experts.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config.model_schema import ExpertsConfig, ModelConfig
from training.models.axes import ALONE, Axes, Axis, exchange_counts, exchange_rows
from training.models.feed_forward import FeedForward
from training.models.router import Router, balance_loss, entropy, z_loss
from training.models.routing_log import RoutingNote, join_loss


class Experts(nn.Module):
    """Equal parts of a block's experts, each a SwiGLU layer; their weights are stacked.

    One tensor per matrix and not one per expert: it gets a gradient whichever experts are chosen, so that all ranks
    reduce the same tensors, and one grouped product runs all experts.
    """

    def __init__(self, hidden_size: int, config: ExpertsConfig, axis: Axis) -> None:
        super().__init__()
        count, width = config.num_experts // axis.size, config.expert_ffn_size
        self.num_experts = config.num_experts
        """Experts of the block."""
        self.first_expert = axis.place * count
        """Number, within the block, of the first expert here."""
        self.gate_proj = nn.Parameter(torch.empty(count, width, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(count, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(count, hidden_size, width))

    def forward(self, rows_RD: Tensor, counts_X: Tensor) -> Tensor:
        """Return each row's output, [R, D]; the first counts_X[0] rows are the first expert's, and so on."""
        multiply = _products(counts_X, rows_RD)
        return multiply(F.silu(multiply(rows_RD, self.gate_proj)) * multiply(rows_RD, self.up_proj), self.down_proj)


class MixtureOfExperts(nn.Module):
    """Each token passes the shared experts and the top few of the routed ones (arXiv:2401.06066).

    Where the experts are spread over ranks, their weights belong to another ZeRO group than the block's: the module
    then is no child of this one (`experts_apart`), and whoever builds the engine takes care of it.
    """

    def __init__(self, config: ModelConfig, axes: Axes = ALONE) -> None:
        super().__init__()
        experts = config.experts
        assert experts is not None
        self.config = experts
        self.axes = axes
        self.gate = Router(config.hidden_size, experts)
        routed = Experts(config.hidden_size, experts, axes.expert)
        self._apart = [routed] if axes.expert.size > 1 else []  # a list hides it from torch
        if axes.expert.size == 1:
            self.experts = routed
        shared = experts.num_shared_experts * experts.expert_ffn_size
        self.shared_experts = FeedForward(config.hidden_size, shared) if shared else None

    @property
    def experts_apart(self) -> Experts | None:
        """The experts where they are no child of this module."""
        return self._apart[0] if self._apart else None

    def forward(self, hidden_BTD: Tensor, note: RoutingNote | None = None) -> Tensor:
        """Return the output [B, T, D]; what the router did goes into `note`, and its losses into the gradient."""
        hidden_ND = hidden_BTD.flatten(0, 1)
        routing = self.gate(hidden_ND)
        config, K = self.config, self.config.experts_per_token
        chosen_R = routing.experts_NK.flatten()
        order_R = chosen_R.argsort(stable=True)
        counts_E = torch.bincount(chosen_R, minlength=config.num_experts)
        kept_R, passed_E = order_R, counts_E
        if config.capacity_factor is not None:
            kept_R, passed_E = _within_capacity(order_R, counts_E, config.capacity_factor)
        rows_RD = _Gather.apply(hidden_ND, kept_R, K)
        assert isinstance(rows_RD, Tensor)
        out_RD = self._pass_remote(rows_RD, passed_E) if self._apart else self.experts(rows_RD, passed_E)
        out_NKD = _Scatter.apply(out_RD, kept_R, K, len(hidden_ND))
        assert isinstance(out_NKD, Tensor)
        mixed_ND = (out_NKD * routing.weights_NK.to(out_NKD.dtype)[..., None]).sum(1)
        mixed_BTD = mixed_ND.view_as(hidden_BTD)
        if self.shared_experts is not None:
            mixed_BTD = mixed_BTD + self.shared_experts(hidden_BTD)
        if note is None:
            return mixed_BTD
        balance, z = hidden_ND.new_zeros((), dtype=torch.float32), hidden_ND.new_zeros((), dtype=torch.float32)
        if config.balance_loss > 0:
            found = balance_loss(routing, config, num_sequences=len(hidden_BTD), sequence=self.axes.sequence)
            balance = config.balance_loss * found
        if config.z_loss > 0:
            z = config.z_loss * z_loss(routing)
        if not note.is_noted:
            # Every rank of the sequence axis has the whole balance loss and counts a part of it.
            note.note(counts_E, balance / self.axes.sequence.size, z, entropy(routing))
        if config.balance_loss > 0 or config.z_loss > 0:
            mixed_BTD = join_loss(mixed_BTD, balance + z, note.gradient_factor)
        return mixed_BTD

    def _pass_remote(self, rows_RD: Tensor, counts_E: Tensor) -> Tensor:
        """Send each row to the rank that holds its expert, and bring the outputs back in the same order."""
        axis = self.axes.expert
        [experts] = self._apart
        received_SX = exchange_counts(counts_E.view(axis.size, -1), axis)
        sent = counts_E.view(axis.size, -1).sum(1).tolist()
        received = received_SX.sum(1).tolist()
        arrived_RD = exchange_rows(rows_RD, sent, received, axis)
        # They arrive by sender, then by expert; a grouped product wants them by expert.
        sender_and_expert = torch.arange(received_SX.numel(), device=rows_RD.device).view_as(received_SX)
        expert_R = (sender_and_expert % received_SX.shape[1]).flatten().repeat_interleave(received_SX.flatten())
        by_expert_R = expert_R.argsort(stable=True)
        # Each expert's gradient is summed over fewer ranks than a dense weight's: ZeRO's mean is over those.
        sorted_RD = _scale_gradient(_permute(arrived_RD, by_expert_R), axis.size)
        out_RD = _scale_gradient(experts(sorted_RD, received_SX.sum(0)), 1 / axis.size)
        return exchange_rows(_permute(out_RD, by_expert_R.argsort()), received, sent, axis)


_GROUPED_STRIDE_BYTES = 16
"""torch's grouped product refuses operands whose strides are no multiple of it."""


def _products(counts_X: Tensor, rows_RD: Tensor) -> Any:
    """Return a function (rows [R, K], weights [X, M, K]) -> [R, M] that multiplies each expert's rows by its weights.

    torch's grouped product runs all experts as one kernel; it takes bf16 on CUDA, and any type on CPU.
    """
    ends_X = counts_X.cumsum(0).to(torch.int32)
    has_kernel = len(rows_RD) > 0 and (rows_RD.device.type == "cpu" or rows_RD.dtype is torch.bfloat16)

    def multiply(rows: Tensor, weights: Tensor) -> Tensor:
        _, M, K = weights.shape
        if has_kernel and not any(dim * rows.element_size() % _GROUPED_STRIDE_BYTES for dim in (M, K)):
            return F.grouped_mm(rows, weights.transpose(-1, -2), offs=ends_X)
        return loop_of_products(rows, weights, counts_X)

    return multiply


def loop_of_products(rows_RK: Tensor, weights_XMK: Tensor, counts_X: Tensor) -> Tensor:
    """Return the product of each expert's rows and weights, one expert after the other: [R, M]."""
    parts = rows_RK.split(counts_X.tolist())
    return torch.cat([F.linear(part, weights_MK) for part, weights_MK in zip(parts, weights_XMK, strict=True)])


def _within_capacity(order_R: Tensor, counts_E: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Return the rows that fit, and how many of each expert; of one expert's, those of earlier tokens come first."""
    capacity = -(-int(factor * len(order_R)) // len(counts_E))
    starts_E = counts_E.cumsum(0) - counts_E
    expert_R = torch.arange(len(counts_E), device=order_R.device).repeat_interleave(counts_E)
    place_R = torch.arange(len(order_R), device=order_R.device) - starts_E[expert_R]
    return order_R[place_R < capacity], counts_E.clamp(max=capacity)


def _permute(rows_RD: Tensor, order_R: Tensor) -> Tensor:
    permuted = _Gather.apply(rows_RD, order_R, 1)
    assert isinstance(permuted, Tensor)
    return permuted


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    scaled = _ScaleGradient.apply(x, factor)
    assert isinstance(scaled, Tensor)
    return scaled


class _Gather(torch.autograd.Function):
    """[N, D] -> row r is token rows_R[r] // K; no two rows are the same (token, choice).

    Backward adds up without atomics, so that it gives the same bits every time.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, rows_R: Tensor, K: int) -> Tensor:
        ctx.save_for_backward(rows_R)
        (ctx.num_tokens, ctx.D), ctx.K = hidden_ND.shape, K
        return hidden_ND.index_select(0, rows_R // K if K > 1 else rows_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (rows_R,) = ctx.saved_tensors
        by_choice_NKD = _spread(gradients[0], rows_R, ctx.num_tokens * ctx.K).view(ctx.num_tokens, ctx.K, ctx.D)
        return by_choice_NKD.sum(1), None, None


class _Scatter(torch.autograd.Function):
    """[R, D] -> [N, K, D]: row r goes to place rows_R[r]; places without a row are zero."""

    @staticmethod
    def forward(ctx: Any, out_RD: Tensor, rows_R: Tensor, K: int, num_tokens: int) -> Tensor:
        ctx.save_for_backward(rows_R)
        return _spread(out_RD, rows_R, num_tokens * K).view(num_tokens, K, out_RD.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (rows_R,) = ctx.saved_tensors
        return gradients[0].flatten(0, 1).index_select(0, rows_R), None, None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _spread(rows_RD: Tensor, places_R: Tensor, num_places: int) -> Tensor:
    if len(places_R) == num_places:
        return rows_RD.new_empty((num_places, rows_RD.shape[1])).index_copy_(0, places_R, rows_RD)
    return rows_RD.new_zeros((num_places, rows_RD.shape[1])).index_copy_(0, places_R, rows_RD)
