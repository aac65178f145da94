"""One optimizer step's forwards and backwards on one rank of a pipeline: its program, carried out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.batch import MicroBatch
from training.engine.chunk import Chunk
from training.engine.learning_pass import Objective, learning_pass
from training.engine.links import Links, empty_like_hidden
from training.engine.routing import Routing
from training.models.dropout import dropout_of
from training.models.learning import learning, summed_losses
from training.models.routing_log import routing_into
from training.parallel.program import Compute, Program, Receive, Send
from training.parallel.schedule import Action, Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """What the forwards and backwards of a step came to on this rank."""

    losses: list[float]
    """`summed_losses` over this rank's micro-batches, on its last pipeline stage; zeros on the others."""
    idle_share: float
    """Share of the time from the first action to the last in which this rank computed nothing."""


class PipelineStep:
    """Carries out a program: computes, sends and receives in its order, and keeps what backward still needs.

    Micro-batches may differ in shape: all ranks of a pipeline hold the same ones, so each knows the shape of what it
    is going to receive.
    """

    def __init__(
        self,
        program: Program,
        chunks: Mapping[int, Chunk],
        links: Links,
        *,
        objective: Objective,
        num_chunks: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        routing: Routing,
    ) -> None:
        self._program = program
        self._num_micro_batches = 1 + max(s.action.micro_batch for s in program if isinstance(s, Compute))
        self._chunks = chunks
        self._links = links
        self._objective = objective
        self._last_chunk = num_chunks - 1
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        self._seed = seed
        self._routing = routing
        self._micro_batches: Sequence[MicroBatch] = ()
        self._scale = 1.0
        self._made: dict[Action, Tensor] = {}
        """Results that wait to be sent or, as outputs of a forward, for their backward."""
        self._inputs: dict[Action, Tensor] = {}
        self._losses: list[Tensor] = []

    def run(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        scale: float,
        targets_per_token: float,
        on_backward: Callable[[int], None] = lambda _micro_batch: None,
    ) -> Passed:
        """Run all micro-batches forward and backward; gradients of the summed loss times `scale` are left to ZeRO.

        Args:
            micro_batches: this replica's, as many as the schedule was made for.
            scale: factor of the summed loss.
            targets_per_token: of the global batch: routers' losses are means over all tokens.
            on_backward: called with the micro-batch's number before each of its backwards.
        """
        assert len(micro_batches) == self._num_micro_batches, "the schedule was made for another number"
        self._micro_batches, self._scale = micro_batches, scale
        self._losses = []
        self._routing.begin(scale * targets_per_token)
        for chunk in self._chunks.values():
            chunk.begin_step()
        watch = Stopwatch(self._device)
        for step in self._program:
            match step:
                case Compute(action):
                    gradient = self._await(action)
                    watch.start()
                    if action.kind is Kind.forward:
                        self._forward(action)
                    else:
                        on_backward(action.micro_batch)
                        self._backward(action, gradient)
                    watch.stop()
                case Send() as transfer:
                    self._links.send(transfer, self._result(transfer.produced_by))
                case Receive(_, _, micro_batch) as transfer:
                    self._links.receive(transfer, self._empty_hidden(micro_batch))
        self._links.finish()
        assert not self._made, "the schedule left results behind"
        assert not self._inputs, "the schedule left inputs behind"
        return Passed(losses=self._summed_losses(), idle_share=watch.idle_share())

    def _summed_losses(self) -> list[float]:
        if self._losses:
            return torch.stack(self._losses).double().sum(0).tolist()
        return [0.0] * self._objective.num_losses

    def _await(self, action: Action) -> Tensor | None:
        """Fetch what the action needs from other ranks: a forward's input (kept for its backward), or a gradient."""
        if action.kind is Kind.backward:
            if action.chunk == self._last_chunk:
                return None
            return self._links.take(Action(Kind.backward, action.chunk + 1, action.micro_batch))
        if action.chunk == 0:
            self._inputs[action] = self._micro_batches[action.micro_batch].input_ids_BT.to(self._device)
        else:
            hidden = self._links.take(Action(Kind.forward, action.chunk - 1, action.micro_batch))
            self._inputs[action] = hidden.requires_grad_()
        return None

    def _forward(self, action: Action) -> None:
        batch = self._micro_batches[action.micro_batch]
        this = learning_pass(batch, self._objective)
        with dropout_of(batch.sample_ids_B, self._seed), learning(this), routing_into(self._routing.log):
            output = self._chunks[action.chunk].forward(self._inputs[action])
        if action.chunk == self._last_chunk:
            losses = summed_losses(output, this)
            self._losses.append(losses.detach())
            output = this.total(losses) * self._scale
        self._made[action] = output

    def _backward(self, action: Action, gradient: Tensor | None) -> None:
        forward = Action(Kind.forward, action.chunk, action.micro_batch)
        inputs, output = self._inputs.pop(forward), self._made.pop(forward)
        is_last = action.micro_batch == len(self._micro_batches) - 1
        self._chunks[action.chunk].backward(output, gradient, is_last=is_last)
        if action.chunk > 0:
            assert inputs.grad is not None
            self._made[action] = inputs.grad

    def _result(self, action: Action) -> Tensor:
        """Return a result to be sent; a forward's stays here for its backward."""
        return self._made[action] if action.kind is Kind.forward else self._made.pop(action)

    def _empty_hidden(self, micro_batch: int) -> Tensor:
        ids_BT = self._micro_batches[micro_batch].input_ids_BT
        return empty_like_hidden(ids_BT, self._hidden_size, self._dtype, self._device)


class Stopwatch:
    """How much of a span was spent between start and stop; on accelerators by events, so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._device = device
        self._marks: list[float | torch.Event] = []

    def start(self) -> None:
        """Begin an action."""
        self._mark()

    def stop(self) -> None:
        """End it."""
        self._mark()

    def idle_share(self) -> float:
        """Return the share of the time from the first start to the last stop that lay between actions."""
        if not self._on_cpu:
            torch.accelerator.synchronize(self._device)
        busy = sum(self._between(2 * index, 2 * index + 1) for index in range(len(self._marks) // 2))
        return 1.0 - busy / self._between(0, len(self._marks) - 1)

    def _mark(self) -> None:
        if self._on_cpu:
            self._marks.append(time.perf_counter())
        else:
            event = torch.Event(self._device, enable_timing=True)
            event.record()
            self._marks.append(event)

    def _between(self, first: int, last: int) -> float:
        begin, end = self._marks[first], self._marks[last]
        if isinstance(begin, torch.Event):
            assert isinstance(end, torch.Event)
            return begin.elapsed_time(end)
        assert isinstance(end, float)
        return end - begin
