"""What the runner sees of an engine: train on one global batch, score sequences, give and take state.

`train_batch` takes a whole global batch because it is the only verb that every engine has: DeepSpeed's
PipelineEngine refuses forward/backward/step (deepspeed 0.19.8, runtime/pipe/engine.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from training.checkpoint.load import Loaded, WeightSource
from training.checkpoint.snapshot import Snapshot
from training.data.batch import MicroBatch
from training.models.inference import KeyValueCache
from training.models.routing_log import RoutingResult
from training.parallel.layout import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNorms:
    """How each layer learned in one step: L2 norms, equal on every rank; tied weights count once, where they are first.

    Each has one entry per layer, in running order.
    """

    names: tuple[str, ...]
    """Prefixes of canonical parameter names."""
    weight_norms: tuple[float, ...]
    """Of the fp32 weights before the update."""
    grad_norms: tuple[float, ...]
    """Of the gradient before clipping; the square root of the sum of their squares is `StepResult.grad_norm`."""
    update_norms: tuple[float, ...]
    """Of what the update added to the weights; 0 of a skipped step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Outcome of one optimizer step, equal on every rank."""

    loss: float
    """Mean loss per valid target of the global batch, of preferences per pair, in nats, before the update."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping; NaN or Inf if the step was skipped."""
    num_tokens: int
    """Tokens of the global batch that were computed, padding too."""
    num_targets: int
    """What the loss is a mean over: valid targets, or pairs."""
    skipped: bool
    """True if the gradient was not finite or the loss not accepted: no weight, no moment was changed on any rank."""
    culprit: str = ""
    """Of a skipped step: rank, pipeline stage, micro-batch and parameter it came from; empty if that is not known."""
    later_loss: float | None = None
    """Mean over the blocks of multi-token prediction of their loss per valid target of the model's own; else None."""
    preference: dict[str, float] | None = None
    """Of preferences: PREFERENCE_MEASURES (training/config/stage_schema.py); else None."""
    routing: RoutingResult | None = None
    """What the routers did with the global batch; None of a dense model, or where their numbers are not finite."""
    bubble: float | None = None
    """Share of a pipeline's forwards and backwards in which ranks computed nothing, mean over ranks; else None."""
    layers: LayerNorms | None = None
    """If the step was to measure them; None under DeepSpeed's PipelineEngine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInstructions:
    """What is asked of a step beyond the usual. DeepSpeed's PipelineEngine does none of it and measures no layers."""

    accept: Callable[[float], bool] | None = None
    """Called once on every rank, between the last backward and the update, with the loss that StepResult will have,
    finite and equal on all ranks; if it returns False (on all alike) nothing is updated. It may be collective and
    raise."""
    twice: bool = False
    """Compute the step twice and compare both bit by bit before the update."""
    measure_layers: bool = False
    """Return `StepResult.layers`, for one collective more; the step itself is the same bit by bit."""


USUAL_STEP = StepInstructions()


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightCopies:
    """The weights of a rank's pipeline stage as the model runs with them, in the parts that its shards own."""

    ranks: list[int]
    """Those that the parts are dealt to."""
    by_owner: dict[int, list[Tensor]]
    """Place in `ranks` -> the flat parts of the weights that are copies of what that rank keeps in fp32; under ZeRO-3
    only this rank's own. Without ZeRO there is one part, the first rank's."""
    kept: list[Tensor]
    """The fp32 weights that this rank keeps, in the order of its own entry of `by_owner`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceScores:
    """Scores of the sequences of one batch (B), on CPU, equal on every rank of the data replica."""

    logprob_B: Tensor
    """float64; sum over valid targets of log p(target | prefix), in nats."""
    is_greedy_B: Tensor
    """bool; whether every valid target is the most likely token at its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How next tokens are drawn: from the softmax of logits/temperature, cut to its nucleus (arXiv:1904.09751)."""

    temperature: float
    """Above 0."""
    top_p: float
    """Share of the probability that is drawn from, the most likely tokens first; 1 for all."""
    uniform_B: Tensor
    """float64 on CPU, one number in [0, 1) per sequence: all the chance there is, so that layouts draw alike."""


class Engine(Protocol):
    """A model, its optimizer and a layout.

    Methods are collective unless they say otherwise: every rank calls them, in the same order.
    """

    layout: Layout
    notes: tuple[str, ...]
    """Sentences for people: what was decided when the engine was built, and why."""

    snapshot: Snapshot
    """Host copy of this rank's training state, which a Saver takes and writes."""

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """DeepSpeed's dictionary, as the engine was built with it."""
        ...

    def train_batch(
        self, micro_batches: Sequence[MicroBatch], *, lr: float, instructions: StepInstructions = USUAL_STEP
    ) -> StepResult:
        """Do one optimizer step on this replica's micro-batches; all ranks of a pipeline get the same ones.

        Raises:
            SilentCorruption: on every rank: the step was to be computed twice, and came out differently.
        """
        ...

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes this rank holds between steps, by what they are: weights, gradients, optimizer. Local."""
        ...

    def weight_copies(self) -> list[WeightCopies]:
        """Return views of the weights that the model runs with, beside the fp32 weights that they are copies of.

        One entry; another one where experts are spread over ranks and so dealt to other ranks.
        """
        ...

    def score(self, batch: MicroBatch, cache: KeyValueCache | None = None) -> SequenceScores:
        """Score sequences without changing any training state.

        Replicas may pass different batches, but must call equally often.

        Args:
            batch: tokens and targets, padded on the right.
            cache: what the tokens continue; it is not advanced. None where they begin sequences.
        """
        ...

    def next_tokens(
        self, input_ids_BT: Tensor, num_tokens_B: Tensor, cache: KeyValueCache, sampling: Sampling | None = None
    ) -> Tensor:
        """Return the token that follows each sequence once these are added to it; int64 [B] on CPU.

        Replicas may pass different batches, but must call equally often.

        Args:
            input_ids_BT: the sequences' next tokens, padded on the right; int64 on CPU.
            num_tokens_B: how many of them count, at least one; int64 on CPU.
            cache: what they continue; it is advanced by them.
            sampling: None takes the most likely token.
        """
        ...

    def load(self, checkpoint: Path) -> Loaded:
        """Replace weights and optimizer state by those of a checkpoint that was found whole, saved under any layout.

        Raises:
            CorruptCheckpoint: it does not fit, and nothing was changed; or it is not any more what was found whole, and
                the engine is not to be used.
        """
        ...

    def load_weights(self, open_source: Callable[[], WeightSource]) -> None:
        """Replace the weights by a source's, read by every rank in ranges, and forget the optimizer's state.

        Raises:
            AutarkyError: the source does not fit, and nothing was changed; or it is damaged, and the engine is not to
                be used.
        """
        ...

    def close(self) -> None:
        """Free process groups and memory, so that another engine can be built in this process."""
        ...
