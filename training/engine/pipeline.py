"""DeepSpeed's own PipelineEngine with ZeRO-1: the well-trodden path to pipeline parallelism."""

import math
from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config.deepspeed_config import deepspeed_config
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.engine.base import USUAL_STEP, StepInstructions, StepResult
from training.engine.inference import Inference
from training.engine.optimizer import build_optimizer, set_learning_rate
from training.engine.pipeline_module import ManualPipelineModule
from training.engine.process_group import ProcessGroup
from training.engine.routing import Routing
from training.engine.stateful import StatefulEngine
from training.models.cut import cut, describe
from training.models.decoder import decoder_layers
from training.models.loss import summed_cross_entropy
from training.models.routing_log import routing_into
from training.parallel.layout import Layout

_UNMEASURED = (
    "layers are not measured (reporting.layers_every_steps): DeepSpeed's PipelineEngine leaves no gap between the "
    "complete gradient and its clipping; pipeline_engine=autarky measures them"
)


class PipelineEngine(StatefulEngine, Inference):
    """Engine over DeepSpeed's PipelineEngine; see `training.engine.base.Engine` for what the methods guarantee.

    Scoring does not use DeepSpeed's `eval_batch`, which adds logits of successive calls together and hangs the other
    ranks when their shapes differ (0.19.8): the pipeline stages pass hidden states on directly.
    """

    def __init__(
        self, config: RunConfig, training_stage: str, processes: ProcessGroup, *, initial_weights: bool
    ) -> None:
        parallel = config.layout_of(training_stage)
        layout = Layout(
            world_size=processes.world_size,
            num_pipeline_stages=parallel.pipeline,
            zero_stage=parallel.zero_stage,
        )
        parts = cut(config, training_stage)
        layers = decoder_layers(
            config.model, seed=config.run.seed, recompute=parallel.recompute, initial_weights=initial_weights
        )
        model = ManualPipelineModule(layers, parts, loss_fn=self._scaled_loss)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(config.optimizer, model.canonical_parameters()),
            config=deepspeed_config(config, training_stage),
        )
        routing = Routing(
            config.model, model.routers(), device=processes.device, is_owner=layout.shard_of(processes.rank) == 0
        )
        super().__init__(config.model, layout, processes, [(engine, model.canonical_parameters())], routing)
        self._engine: Any = engine
        measures = config.reporting.layers_every_steps > 0
        self.notes = (*describe(config, training_stage, parts), *([_UNMEASURED] if measures else []))
        self._hidden_size = config.model.hidden_size
        group = model.mpu().get_pipe_parallel_group()
        assert isinstance(group, dist.ProcessGroup)
        self._pipeline_group = group
        self._pipeline_ranks = layout.pipeline_group(layout.shard_of(processes.rank))
        self._place = layout.pipeline_stage_of(processes.rank)
        self._scale = 1.0

    def _scaled_loss(self, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        return summed_cross_entropy(logits_BTV, labels_BT) * self._scale

    def train_batch(
        self, micro_batches: Sequence[MicroBatch], *, lr: float, instructions: StepInstructions = USUAL_STEP
    ) -> StepResult:
        """Do one optimizer step; see `Engine.train_batch`."""
        usual = instructions.accept is None and not instructions.twice
        assert usual, "DeepSpeed's engine leaves no gap before the update; the config checks know"
        self._set_mode(learns=True)
        set_learning_rate(self._engine.optimizer, lr)
        num_targets, num_tokens = self._count(micro_batches)
        replica_sequences = sum(len(batch.input_ids_BT) for batch in micro_batches)
        self._engine.set_train_batch_size(replica_sequences * self.layout.num_replicas)
        # DeepSpeed averages over micro-batches and replicas; scaled so, its mean is the global batch's mean per target.
        self._scale = len(micro_batches) * self.layout.num_replicas / num_targets
        self._routing.begin(self.layout.num_replicas / num_tokens)
        with routing_into(self._routing.log):
            loss = self._engine.train_batch(iter([(batch.input_ids_BT, batch.labels_BT) for batch in micro_batches]))
        norm = float(self._engine.get_global_grad_norm())
        # Also what the ballot says at the end of the step; the sum above was at its beginning.
        routed = self._processes.sum(self._routing.sums())
        skipped = not math.isfinite(norm)
        return StepResult(
            loss=float(loss),
            grad_norm=norm,
            num_tokens=num_tokens,
            num_targets=num_targets,
            skipped=skipped,
            routing=self._routing.end(routed, num_tokens=num_tokens, is_used=not skipped),
        )

    def _modules(self) -> list[nn.Module]:
        return [self._engine.module]

    def _infer(self, input_ids_BT: Tensor) -> Tensor | None:
        module, device = self._engine.module, self._engine.device
        hidden = input_ids_BT.to(device)
        if self._place > 0:
            dtype = next(module.parameters()).dtype
            hidden = torch.empty((*hidden.shape, self._hidden_size), dtype=dtype, device=device)
            dist.recv(hidden, src=self._pipeline_ranks[self._place - 1])
        hidden = module(hidden)
        if self._place < len(self._pipeline_ranks) - 1:
            dist.send(hidden.contiguous(), dst=self._pipeline_ranks[self._place + 1])
            return None
        return hidden

    def _tell(self, found: Tensor | None, *, num_rows: int, num_columns: int) -> Tensor:
        if found is None:
            found = torch.empty((num_rows, num_columns), dtype=torch.float64, device=self._engine.device)
        dist.broadcast(found, src=self._pipeline_ranks[-1], group=self._pipeline_group)
        return found.cpu()
