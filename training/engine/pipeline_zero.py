"""Pipeline parallelism over ZeRO-1, 2 or 3: every chunk of the model is a DeepSpeedEngine of its own.

DeepSpeed's PipelineEngine refuses ZeRO-2 and 3. Here a table of actions (training/parallel/schedule.py) drives the
chunks, and what concerns all pipeline stages at once is done here: tied weights, the gradient's norm, the decision
whether a step counts. docs/adr/0005 says why it is built so.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.config.schema import Precision, Regather, RunConfig
from training.data.batch import MicroBatch
from training.engine.base import USUAL_STEP, StepInstructions, StepResult
from training.engine.chunk import Chunk, modules_of
from training.engine.deepspeed_private import PipelineStagePlace
from training.engine.global_gradient import GlobalGradient
from training.engine.groups import axes_of, sharding_group
from training.engine.inference import Inference
from training.engine.learning_pass import objective
from training.engine.links import Links, empty_like_hidden
from training.engine.non_finite import NonFiniteWatch
from training.engine.optimizer import set_learning_rate
from training.engine.pipeline_step import PipelineStep
from training.engine.process_group import ProcessGroup
from training.engine.repeated_step import StepTrace, compare
from training.engine.routing import Routing
from training.engine.stateful import StatefulEngine
from training.models.axes import Axes
from training.models.cut import cut, describe
from training.models.decoder import decoder_layers
from training.models.memory import choose_regather, device_memory_bytes
from training.parallel.layout import Layout
from training.parallel.program import programs
from training.parallel.schedule import check, make_schedule
from training.parallel.simulate import unit_time


class PipelineZeroEngine(StatefulEngine, Inference):
    """Engine over one DeepSpeedEngine per chunk; see `training.engine.base.Engine` for what the methods guarantee."""

    def __init__(
        self, config: RunConfig, training_stage: str, processes: ProcessGroup, *, initial_weights: bool
    ) -> None:
        parallel = config.layout_of(training_stage)
        layout = Layout(
            world_size=processes.world_size,
            num_pipeline_stages=parallel.pipeline,
            sequence=parallel.sequence,
            expert=parallel.expert,
            zero_stage=parallel.zero_stage,
        )
        self._place = layout.pipeline_stage_of(processes.rank)
        shard = layout.shard_of(processes.rank)
        parts = cut(config, training_stage)
        schedules = [
            make_schedule(
                parallel.schedule,
                num_pipeline_stages=parallel.pipeline,
                chunks_per_rank=parallel.chunks_per_rank,
                num_micro_batches=num_micro_batches,
            )
            for num_micro_batches in config.micro_batch_counts(training_stage)
        ]
        for schedule in schedules:
            check(schedule)
        regather, reason = choose_regather(
            config, training_stage, parts=parts, memory_bytes=device_memory_bytes(config, parallel)
        )
        # Nodes may have different memory, but all ranks must gather alike.
        regather = Regather(processes.broadcast_text(regather))
        self.notes = (
            *describe(config, training_stage, parts),
            *(
                f"schedule {schedule.name} of {schedule.num_micro_batches} micro-batches: bubble "
                f"{100 * unit_time(schedule).bubble:.1f} % of the step if all chunks cost the same and backward twice "
                "the forward"
                for schedule in schedules
            ),
            f"regather {reason}",
        )
        across = sharding_group([layout.pipeline_group(s) for s in range(layout.num_shards)], processes)
        along = sharding_group([layout.shard_group(s) for s in range(parallel.pipeline)], processes)
        axes = axes_of(layout, processes)
        has_bf16_optimizer = config.precision is Precision.bf16 and parallel.zero_stage == 1
        experts_place = None
        if layout.expert > 1:
            experts_place = PipelineStagePlace(
                data_parallel_group=sharding_group(layout.expert_shard_groups(), processes),
                shard=shard // layout.expert,
                num_shards=layout.num_shards // layout.expert,
                has_bf16_optimizer=has_bf16_optimizer,
            )
        self._chunks = _build_chunks(
            config,
            training_stage,
            parts,
            PipelineStagePlace(
                data_parallel_group=along,
                shard=shard,
                num_shards=layout.num_shards,
                has_bf16_optimizer=has_bf16_optimizer,
            ),
            experts_place,
            axes=axes,
            my_chunks=range(self._place, len(parts), parallel.pipeline),
            regather=regather,
            initial_weights=initial_weights,
        )
        chunks = self._chunks.values()
        super().__init__(
            config.model,
            layout,
            processes,
            [(chunk.engine, chunk.model.canonical_parameters()) for chunk in chunks],
            Routing(
                config.model,
                [router for chunk in chunks for router in chunk.model.routers()],
                device=processes.device,
                is_owner=shard == 0,
            ),
            experts=[(chunk.experts_engine, chunk.experts.items()) for chunk in chunks if chunk.experts],
        )
        self._targets_per_token = 1.0
        """Of the step that is computed."""
        self._num_chunks = len(parts)
        numbered = [
            pair
            for index, chunk in self._chunks.items()
            for pair in zip(parts[index], chunk.model.sequence, strict=True)
        ]
        self._numbered_layers = [(number, module) for number, layer in numbered for module in modules_of(layer)]
        self._hidden_size = config.model.hidden_size
        self._dtype = torch.bfloat16 if config.precision is Precision.bf16 else torch.float32
        self._objective = objective(config, training_stage, axes)
        self._links = Links(across, layout.pipeline_group(shard), num_chunks=len(parts))
        self._steps = {
            schedule.num_micro_batches: PipelineStep(
                programs(schedule)[self._place],
                self._chunks,
                self._links,
                objective=self._objective,
                num_chunks=len(parts),
                hidden_size=config.model.hidden_size,
                dtype=self._dtype,
                device=processes.device,
                seed=config.run.seed,
                routing=self._routing,
            )
            for schedule in schedules
        }
        """Number of micro-batches -> how they are run; batches of a ramp have fewer."""
        self._gradient = GlobalGradient(
            self._states,
            processes,
            tied=config.model.shares_embedding and len(parts) > 1,
            layout=layout,
            clip_norm=config.optimizer.gradient_clip_norm,
        )

    def train_batch(
        self, micro_batches: Sequence[MicroBatch], *, lr: float, instructions: StepInstructions = USUAL_STEP
    ) -> StepResult:
        """Do one optimizer step; see `Engine.train_batch`."""
        self._set_mode(learns=True)
        for engine in self._engines:
            set_learning_rate(engine.optimizer, lr)
        micro_batches = self._my_part(micro_batches)
        num_targets, num_tokens = self._count(micro_batches)
        # ZeRO averages over shards; so scaled, its mean is the global batch's mean per target.
        scale = self.layout.num_shards / num_targets
        self._targets_per_token = num_targets / num_tokens
        compute = self._compute_twice if instructions.twice else self._compute
        norm, sums = compute(micro_batches, scale, measure_layers=instructions.measure_layers)
        num_losses = self._objective.num_losses
        means, (idle, *routed) = self._objective.means(sums[:num_losses], num_targets), sums[num_losses:]
        loss = means.loss
        accepted = math.isfinite(loss) and (instructions.accept is None or instructions.accept(loss))
        skipped = not accepted or not math.isfinite(norm)
        if skipped:
            self._gradient.void()
        if instructions.measure_layers:
            self._layers.note_weights()
        self._update()
        layers = self._layers.measured() if instructions.measure_layers else None
        return StepResult(
            loss=loss,
            grad_norm=norm,
            num_tokens=num_tokens,
            num_targets=num_targets,
            skipped=skipped,
            later_loss=means.later_loss,
            preference=means.preference,
            routing=self._routing.end(routed, num_tokens=num_tokens, is_used=not skipped),
            culprit="" if math.isfinite(norm) else self._find_culprit(micro_batches, scale),
            bubble=idle / self._processes.world_size,
            layers=layers,
        )

    def _compute(
        self, micro_batches: Sequence[MicroBatch], scale: float, *, measure_layers: bool = False
    ) -> tuple[float, list[float]]:
        """Make the step's gradient, complete and clipped; return its norm before, and sums over all ranks.

        They are the losses, the idle shares and what the routers did.
        """
        passed = self._steps[len(micro_batches)].run(
            micro_batches, scale=scale, targets_per_token=self._targets_per_token
        )
        note = self._layers.note_gradients if measure_layers else None
        return self._gradient.reduce([*passed.losses, passed.idle_share, *self._routing.sums()], note)

    def _compute_twice(
        self, micro_batches: Sequence[MicroBatch], scale: float, *, measure_layers: bool
    ) -> tuple[float, list[float]]:
        """Do as `_compute`, twice, and compare.

        Raises:
            SilentCorruption: on every rank, naming those that came out differently.
        """
        with StepTrace(self._numbered_layers) as first:
            self._compute(micro_batches, scale)
        first.note_gradients(self._gradient.values())
        self._gradient.void()
        self._update()
        with StepTrace(self._numbered_layers) as second:
            computed = self._compute(micro_batches, scale, measure_layers=measure_layers)
        second.note_gradients(self._gradient.values())
        compare(first, second, self._processes, self.layout)
        return computed

    def _update(self) -> None:
        """Let every chunk's optimizer use its gradients, or throw away what is not finite."""
        for engine in self._engines:
            self._step(engine)

    def _find_culprit(self, micro_batches: Sequence[MicroBatch], scale: float) -> str:
        """Return where a step's gradient stopped to be finite: the weights are unchanged, so the step is run again."""
        with NonFiniteWatch([pair for chunk in self._chunks.values() for pair in chunk.parameters()]) as watch:
            self._steps[len(micro_batches)].run(
                micro_batches,
                scale=scale,
                targets_per_token=self._targets_per_token,
                on_backward=watch.begin_micro_batch,
            )
        self._gradient.reduce([])
        self._gradient.void()
        self._update()
        return watch.report(self._processes, place=self._place)

    def _modules(self) -> list[nn.Module]:
        return [chunk.model for chunk in self._chunks.values()]

    def _infer(self, input_ids_BT: Tensor) -> Tensor | None:
        device, num_stages = self._processes.device, self.layout.num_pipeline_stages
        hidden = input_ids_BT.to(device)
        for index in range(self._num_chunks):
            here, before = index % num_stages, (index - 1) % num_stages
            if index > 0:
                if self._place == here:
                    hidden = empty_like_hidden(input_ids_BT, self._hidden_size, self._dtype, device)
                self._links.pass_on(hidden, sender=before, receiver=here, me=self._place)
            if self._place == here:
                hidden = self._chunks[index].forward(hidden)
        return hidden if self._place == num_stages - 1 else None

    def _tell(self, found: Tensor | None, *, num_rows: int, num_columns: int) -> Tensor:
        if found is None:
            found = torch.empty((num_rows, num_columns), dtype=torch.float64, device=self._processes.device)
        self._links.broadcast_from_last(found)
        return found.cpu()


def _build_chunks(
    config: RunConfig,
    training_stage: str,
    parts: Sequence[range],
    place: PipelineStagePlace,
    experts_place: PipelineStagePlace | None,
    *,
    axes: Axes,
    my_chunks: range,
    regather: Regather,
    initial_weights: bool,
) -> dict[int, Chunk]:
    """Return this rank's chunks by their number; collective."""
    recompute = config.layout_of(training_stage).recompute
    layers = decoder_layers(
        config.model, seed=config.run.seed, recompute=recompute, initial_weights=initial_weights, axes=axes
    )
    # In one chunk alone a tied layer runs its owner's own module.
    owners = frozenset(layer.owner for layer in layers if layer.owner and len(parts) > 1)
    chunks = {}
    for index in my_chunks:
        mine = [layers[number] for number in parts[index]]
        chunks[index] = Chunk(
            config,
            training_stage,
            mine,
            place,
            tied=owners,
            copied=frozenset(layer.owner for layer in mine if layer.owner in owners and layer.owner),
            regather=regather,
            experts_place=experts_place,
        )
    return chunks
