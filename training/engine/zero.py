"""ZeRO 0-3 over DeepSpeedEngine: every rank runs the whole list of layers, on whole sequences or a part of each."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from training.config.deepspeed_config import deepspeed_config
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.engine.base import USUAL_STEP, StepInstructions, StepResult
from training.engine.global_gradient import GlobalGradient
from training.engine.groups import axes_of
from training.engine.inference import Inference
from training.engine.learning_pass import learning_pass, objective
from training.engine.non_finite import NonFiniteWatch
from training.engine.optimizer import build_optimizer, set_learning_rate
from training.engine.process_group import ProcessGroup
from training.engine.repeated_step import StepTrace, compare
from training.engine.routing import Routing
from training.engine.sharded_layers import sharded_layers
from training.engine.stateful import StatefulEngine
from training.models.decoder import Decoder, decoder_layers
from training.models.dropout import dropout_of
from training.models.layers import DecoderBlock
from training.models.learning import learning, summed_losses
from training.models.routing_log import routing_into
from training.parallel.layout import Layout


class ZeroEngine(StatefulEngine, Inference):
    """Engine over one DeepSpeedEngine; see `training.engine.base.Engine` for what the methods guarantee."""

    def __init__(
        self, config: RunConfig, training_stage: str, processes: ProcessGroup, *, initial_weights: bool
    ) -> None:
        parallel = config.layout_of(training_stage)
        layout = Layout(world_size=processes.world_size, sequence=parallel.sequence, zero_stage=parallel.zero_stage)
        axes = axes_of(layout, processes)
        layers = decoder_layers(
            config.model,
            seed=config.run.seed,
            recompute=parallel.recompute,
            initial_weights=initial_weights,
            axes=axes,
        )
        if parallel.zero_stage == 3:
            layers = sharded_layers(layers, config, training_stage)
        model = Decoder(layers)
        if parallel.zero_stage == 3:
            set_z3_leaf_modules(model, [DecoderBlock])  # one collective per block, not one per matrix
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
        self._objective = objective(config, training_stage, axes)
        self._targets_per_token = 1.0
        """Of the step that is computed."""
        self._seed = config.run.seed
        self._clip_norm = config.optimizer.gradient_clip_norm
        self._gradient: GlobalGradient | None = None
        if self._has_muon and parallel.zero_stage == 3:  # see training/config/deepspeed_config.py
            self._gradient = GlobalGradient(
                self._states, processes, tied=False, layout=layout, clip_norm=config.optimizer.gradient_clip_norm
            )

    def train_batch(
        self, micro_batches: Sequence[MicroBatch], *, lr: float, instructions: StepInstructions = USUAL_STEP
    ) -> StepResult:
        """Do one optimizer step; see `Engine.train_batch`."""
        self._set_mode(learns=True)
        set_learning_rate(self._engine.optimizer, lr)
        micro_batches = self._my_part(micro_batches)
        num_targets, num_tokens = self._count(micro_batches)
        # DeepSpeed divides by ranks and by the micro-batches of its dictionary, however many there are; we want the
        # division by the global batch's targets alone.
        scale = self._engine.gradient_accumulation_steps() * self.layout.num_shards / num_targets
        self._targets_per_token = num_targets / num_tokens
        compute = self._compute_twice if instructions.twice else self._forward_backward
        losses = compute(micro_batches, scale)
        sums = self._processes.sum([*losses, *self._routing.sums()])
        means, routed = self._objective.means(sums[: len(losses)], num_targets), sums[len(losses) :]
        loss = means.loss
        accepted = math.isfinite(loss) and (instructions.accept is None or instructions.accept(loss))
        if instructions.measure_layers:
            self._layers.note_gradients(self._owned_gradients())
            self._layers.note_weights()
        norm = self._update() if accepted else self._refuse()
        layers = self._layers.measured() if instructions.measure_layers else None
        skipped = not accepted or not math.isfinite(norm)
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
            layers=layers,
        )

    def _update(self) -> float:
        """Use the gradient, unless it is not finite; return its norm before clipping."""
        norm = self._clip_or_drop() if self.layout.zero_stage == 0 else None
        if self._gradient is not None:
            norm, _ = self._gradient.reduce([])
            if not math.isfinite(norm):
                # Of each matrix by itself Muon leaves the momentum alone where its own gradient is not finite.
                self._gradient.void()
        self._step(self._engine)
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def _refuse(self) -> float:
        """Throw the gradient away; return its norm."""
        gradients = self._local_gradients()
        square = torch.stack(torch._foreach_norm(gradients)).double().square().sum().item() if gradients else 0.0
        shares = 1 if self.layout.zero_stage else self.layout.num_shards  # without ZeRO every rank has all of it
        total = self._processes.sum([square])[0] / shares
        self._drop()
        return math.sqrt(total) if total >= 0 else math.nan

    def _drop(self) -> None:
        """Throw the gradient away: DeepSpeed's optimizers skip a step whose gradient is NaN, and clear up."""
        if self.layout.zero_stage == 0:
            self._engine.zero_grad()
        else:
            for gradient in self._local_gradients():
                gradient.fill_(math.nan)
        self._step(self._engine)

    def _local_gradients(self) -> list[Tensor]:
        """Return this rank's part of the reduced gradient: all of it without ZeRO."""
        if self.layout.zero_stage == 0:
            return [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return [gradient.values for gradient in self._states[0].gradients() if gradient.values.numel()]

    def _owned_gradients(self) -> list[tuple[str, Tensor]]:
        """Return the parts of the reduced gradient that this rank counts, by parameter; before the update."""
        if self.layout.zero_stage == 0:
            counts = self.layout.shard_of(self._processes.rank) == 0  # every rank has all of it
            named = self._engine.module.canonical_parameters() if counts else ()
            return [(name, p.grad) for name, p in named if p.grad is not None]
        return [(gradient.parameter, gradient.values) for gradient in self._states[0].gradients()]

    def _compute_twice(self, micro_batches: Sequence[MicroBatch], scale: float) -> list[float]:
        """Run all micro-batches twice; return the summed losses if both came out alike, for the second to be used.

        Raises:
            SilentCorruption: on every rank, naming those that came out differently.
        """
        layers = list(enumerate(self._engine.module.sequence))
        with StepTrace(layers) as first:
            self._forward_backward(micro_batches, scale)
        first.note_gradients(self._local_gradients())
        self._drop()
        with StepTrace(layers) as second:
            losses = self._forward_backward(micro_batches, scale)
        second.note_gradients(self._local_gradients())
        compare(first, second, self._processes, self.layout)
        return losses

    def _forward_backward(
        self,
        micro_batches: Sequence[MicroBatch],
        scale: float,
        on_backward: Callable[[int], None] = lambda _micro_batch: None,
    ) -> list[float]:
        """Run all micro-batches up to the step that ends them; return its summed losses, the model's own first."""
        self._routing.begin(scale / self._engine.gradient_accumulation_steps() * self._targets_per_token)
        losses = torch.zeros(self._objective.num_losses, dtype=torch.float64)
        for number, batch in enumerate(micro_batches):
            # Batches of a ramp have fewer micro-batches than DeepSpeed's dictionary says, so it cannot count them.
            self._engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            on_backward(number)
            losses += self._backward(batch, scale)
        return losses.tolist()

    def _backward(self, batch: MicroBatch, scale: float) -> Tensor:
        this = learning_pass(batch, self._objective)
        with dropout_of(batch.sample_ids_B, self._seed), learning(this), routing_into(self._routing.log):
            output = self._engine(batch.input_ids_BT.to(self._engine.device))
        losses = summed_losses(output, this)
        self._engine.backward(this.total(losses) * scale)
        return losses.double().detach().cpu()

    def _find_culprit(self, micro_batches: Sequence[MicroBatch], scale: float) -> str:
        """Return where a step's gradient stopped to be finite: the weights are unchanged, so the step is run again."""
        with NonFiniteWatch(self._engine.module.canonical_parameters()) as watch:
            self._forward_backward(micro_batches, scale, watch.begin_micro_batch)
        self._drop()  # whatever the repetition gave must not be used: the step is already reported as skipped
        return watch.report(self._processes, place=0)

    def _clip_or_drop(self) -> float:
        """Clip the gradient without ZeRO, or drop it if it is not finite; return its norm before.

        DeepSpeed neither reports the norm there nor skips a NaN. The gradients are already averaged, so every rank
        decides alike. AdamW leaves parameters without a gradient alone.
        """
        parameters = list(self._engine.module.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not norm.isfinite():
            self._engine.zero_grad()
        elif self._clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return norm.item()

    def _modules(self) -> list[nn.Module]:
        return [self._engine]

    def _infer(self, input_ids_BT: Tensor) -> Tensor:
        return self._engine(input_ids_BT.to(self._engine.device))

    def _tell(self, found: Tensor | None, *, num_rows: int, num_columns: int) -> Tensor:
        assert found is not None
        assert found.shape == (num_rows, num_columns)
        return found.cpu()
