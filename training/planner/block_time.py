"""Seconds of one block, of the embedding and of the head, for one micro-batch on one rank. No torch."""

from dataclasses import dataclass

from training.planner.constants import Constants
from training.planner.job import Job, Recompute
from training.planner.network import Collectives, groups_of
from training.planner.operators import (
    Work,
    block_parameters,
    block_work,
    context_exchanges,
    element_bytes,
    embedding_work,
    head_work,
    hidden_bytes,
    repeats_exchanges,
    table_parameters,
    token_shards,
)
from training.planner.replica_exchange import gather_bytes, replica_exchange
from training.planner.roofline import attention_seconds, gemm_seconds, traffic_seconds

_TENSOR_COLLECTIVES = 10
"""Of one block: an all-gather and a reduce-scatter around each of its two halves, forward and backward, and in backward
each half's input gathered once more."""


@dataclass(frozen=True, slots=True)
class PassTime:
    """Seconds of a pass by what they are spent on; of communication, those that nothing hides."""

    gemm: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    """Memory-bound operators."""
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0
    data: float = 0.0
    pipeline: float = 0.0
    host: float = 0.0
    """Waiting for the host to launch."""

    @property
    def compute(self) -> float:
        """Seconds in which the device computes."""
        return self.gemm + self.attention + self.memory

    @property
    def total(self) -> float:
        """Seconds of the pass."""
        return (
            self.gemm
            + self.attention
            + self.memory
            + self.tensor
            + self.context
            + self.expert
            + self.data
            + self.pipeline
            + self.host
        )

    def __add__(self, other: "PassTime") -> "PassTime":
        return PassTime(
            self.gemm + other.gemm,
            self.attention + other.attention,
            self.memory + other.memory,
            self.tensor + other.tensor,
            self.context + other.context,
            self.expert + other.expert,
            self.data + other.data,
            self.pipeline + other.pipeline,
            self.host + other.host,
        )

    def __mul__(self, count: float) -> "PassTime":
        return PassTime(
            self.gemm * count,
            self.attention * count,
            self.memory * count,
            self.tensor * count,
            self.context * count,
            self.expert * count,
            self.data * count,
            self.pipeline * count,
            self.host * count,
        )


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward and backward of one part of the model."""

    forward: PassTime = PassTime()
    backward: PassTime = PassTime()

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, count: float) -> "Passes":
        return Passes(self.forward * count, self.backward * count)


class BlockTime:
    """Seconds of the parts of one job's model."""

    def __init__(self, job: Job, constants: Constants) -> None:
        self.job, self.efficiency = job, constants.efficiency
        self.software = constants.software[job.software]
        self.kernel = constants.kernels[self.software.attention]
        self.groups = groups_of(job)
        self.collectives = Collectives(job.network, constants.efficiency)

    def block(self, *, is_dense: bool) -> Passes:
        """Return the passes of one block."""
        job, software, split = self.job, self.software, self.job.split
        work = block_work(job, software, is_dense=is_dense)
        dense, expert = block_parameters(job, is_dense=is_dense)
        alone = self._computed(work)
        forward = alone.forward + self._exchanges(work, alone.forward, gathers_again=False)
        backward = alone.backward + self._exchanges(work, alone.backward, gathers_again=True)
        backward += self._accumulated(dense + expert)
        again = self._recomputed(forward)
        backward += again
        host = software.host_seconds_per_block + (software.host_seconds_per_expert_block if expert else 0.0)
        if split.tensor > 1:
            host += _TENSOR_COLLECTIVES * split.tensor * software.issue_seconds_per_member
        # Backward launches twice as much as forward, and forward's again where it is recomputed.
        host_forward, host_backward = host / 3, 2 * host / 3
        if split.recompute is Recompute.full:
            host_backward += host_forward
        forward += PassTime(host=max(0.0, host_forward - forward.total))
        backward += PassTime(host=max(0.0, host_backward - backward.total))
        return self._with_replicas(Passes(forward, backward), dense, expert)

    def embedding(self) -> Passes:
        """Return the passes of the embedding; its tensor-parallel ranks each look up a part of the vocabulary."""
        alone = self._computed(embedding_work(self.job))
        return self._with_table(Passes(alone.forward + PassTime(tensor=self._hidden_exchange() / 2), alone.backward))

    def head(self) -> Passes:
        """Return the passes of the final norm, the output projection and the loss."""
        alone = self._computed(head_work(self.job, self.software))
        exchange = PassTime(tensor=self._hidden_exchange() / 2)
        return self._with_table(Passes(alone.forward + exchange, alone.backward + exchange))

    def transfer(self) -> float:
        """Return seconds of sending one micro-batch's hidden states to the next pipeline stage."""
        sent = hidden_bytes(self.job) / token_shards(self.job)
        return self.collectives.send(sent, stride=self.groups.pipeline_stride)

    def hidden(self, seconds: float, beside_seconds: float) -> PassTime:
        """Return what communication of replicas adds to a pass beside which it runs."""
        hidden = min(seconds, self.software.data_overlap * beside_seconds)
        return PassTime(data=seconds - hidden + self.efficiency.interference * hidden)

    def _computed(self, work: Work) -> Passes:
        device, efficiency = self.job.device, self.efficiency
        forward = backward = 0.0
        for gemm in work.gemms:
            forward += gemm_seconds(gemm, device, efficiency)
            for product in gemm.backward():
                backward += gemm_seconds(product, device, efficiency)
        attention = (0.0, 0.0)
        if work.attention is not None:
            attention = attention_seconds(work.attention, self.kernel, device, efficiency)
            if not self.software.balances_context and self.job.split.context_exchange == "keys":
                last = 2 - 1 / self.job.split.context  # the last rank's share of the causal half, over the mean
                attention = last * attention[0], last * attention[1]
        return Passes(
            PassTime(forward, attention[0], traffic_seconds(work.forward_bytes, device, efficiency)),
            PassTime(backward, attention[1], traffic_seconds(work.backward_bytes, device, efficiency)),
        )

    def _hidden_exchange(self) -> float:
        """Return seconds of an all-gather and a reduce-scatter of hidden states, or of an all-reduce."""
        if self.job.split.tensor_shards_sequence:
            return 2 * self.collectives.all_gather(hidden_bytes(self.job), self.groups.tensor)
        return self.collectives.all_reduce(hidden_bytes(self.job), self.groups.tensor)

    def _exchanges(self, work: Work, beside: PassTime, *, gathers_again: bool) -> PassTime:
        """Return what the exchanges of a block add to a pass, tensor-, context- and expert-parallel.

        Backward with sharded tokens gathers the inputs of both halves once more, for the gradients of their weights
        (arXiv:2205.05198, section 4.2.2).
        """
        job, software, split = self.job, self.software, self.job.split
        tensor = context = expert = 0.0
        if split.tensor > 1:
            again = 1.5 if gathers_again and split.tensor_shards_sequence else 1.0
            once = again * self._hidden_exchange()
            halves = 1 if work.exchanged_bytes and split.tensor_shards_sequence else 2
            tensor = halves * once * (1 - software.tensor_overlap)
            if work.exchanged_bytes and job.model.experts is not None and split.tensor_shards_sequence:
                # Experts are cut too: what they exchange is every copy of a token, and no product hides it.
                tensor += once * job.model.experts.experts_per_token
        if split.context > 1:
            context = self._context_exchange(beside, is_backward=gathers_again)
        if work.exchanged_bytes and split.expert > 1 and job.model.experts is not None:
            # To the experts and back.
            moved = 2 * self.collectives.all_to_all(
                work.exchanged_bytes,
                self.groups.expert,
                copies=job.model.experts.experts_per_token,
                deduplicates=software.deduplicates_exchange,
            )
            expert = moved * (1 - software.expert_overlap)
        return PassTime(tensor=tensor, context=context, expert=expert)

    def _context_exchange(self, beside: PassTime, *, is_backward: bool) -> float:
        """Return what sharing the tokens of a sequence adds to a pass.

        Keys: keys and values of all tokens go round, in backward their gradients too, beside attention. Heads: queries,
        keys and values go to where their heads are, before attention, and its result back after it (arXiv:2309.14509,
        section 3); in backward their gradients.
        """
        job, split = self.job, self.job.split
        exchanged = [element_bytes(job) * count for count in context_exchanges(job)]
        if split.context_exchange == "heads":
            return sum(self.collectives.all_to_all(sent, self.groups.context) for sent in exchanged)
        _, key_bytes, value_bytes, _ = exchanged
        moved = self.collectives.all_gather((key_bytes + value_bytes) * split.context, self.groups.context)
        moved *= 2 if is_backward else 1
        return max(0.0, moved - self.software.context_overlap * beside.attention)

    def _recomputed(self, forward: PassTime) -> PassTime:
        recompute = self.job.split.recompute
        if recompute is Recompute.full:
            return forward
        if recompute is Recompute.selective:
            share = self.software.selective_gemm_share
            again = PassTime(gemm=share * forward.gemm, memory=forward.memory, tensor=share * forward.tensor)
            if repeats_exchanges(self.job):
                again += PassTime(context=forward.context, expert=forward.expert)
            return again
        if recompute is Recompute.attention:
            return PassTime(attention=forward.attention)
        return PassTime()

    def _accumulated(self, parameters: float) -> PassTime:
        """Return what a rank spends on adding up so many whole gradients."""
        if not self.software.accumulates_whole:
            return PassTime()
        moved = self.software.accumulate_bytes * parameters
        return PassTime(memory=traffic_seconds(moved, self.job.device, self.efficiency))

    def _with_table(self, passes: Passes) -> Passes:
        """Return the passes of the embedding or the head with what becomes of its weight's gradient."""
        parameters = table_parameters(self.job)
        both = Passes(passes.forward, passes.backward + self._accumulated(parameters))
        return self._with_replicas(both, parameters, 0.0)

    def _with_replicas(self, passes: Passes, dense: float, expert: float) -> Passes:
        """Return passes with the gathering of weights and reducing of gradients that go with every micro-batch.

        Args:
            passes: without them.
            dense: parameters that all replicas have.
            expert: parameters of this rank's experts.
        """
        exchange = replica_exchange(self.job, self.software)
        if not exchange.is_of_micro_batches:
            return passes
        gather = gather_again = reduce = 0.0
        for count, group, copied_in in (
            (dense, self.groups.shards, self.groups.gather),
            (expert, self.groups.expert_replicas, self.groups.expert_replicas),
        ):
            weights = gather_bytes(self.job, self.software) * count
            gather += self.collectives.all_gather(weights, group)
            gather_again += self.collectives.all_gather(weights, copied_in)
            reduce += self.collectives.all_gather(self.software.reduce_bytes * count, group)
        sums = exchange.backward_reductions * (2 if exchange.sums_whole else 1)
        behind = exchange.backward_gathers * gather_again + sums * reduce
        return Passes(
            passes.forward + self.hidden(exchange.forward_gathers * gather, passes.forward.total),
            passes.backward + self.hidden(behind, passes.backward.total),
        )
