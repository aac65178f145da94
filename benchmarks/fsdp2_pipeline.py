"""Contestant: the same layers, cut, batches, loss and AdamW in torch's own pipeline over FSDP2.

Put together as torchtitan does: `fully_shard` for each layer of a pipeline stage over its replicas, weights kept whole
between micro-batches (reshard_after_forward=False, its default under pipelining), gradients reduced once per step,
`Schedule1F1B`, fused AdamW. Neither adds up the gradients of tied weights: that is done here by hand.
"""

from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor

from benchmarks.turns import Steps
from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.engine.optimizer import adamw
from training.models.cut import cut
from training.models.decoder import Decoder, decoder_layers
from training.models.loss import summed_cross_entropy


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for ever."""
    dist.init_process_group("gloo")
    num_stages = config.layout_of(training_stage).pipeline
    assert num_stages == 2, "tied weights' gradients are added up over the whole pipeline"
    num_replicas = dist.get_world_size() // num_stages
    mesh = init_device_mesh("cpu", (num_stages, num_replicas), mesh_dim_names=("pp", "dp"))
    place, replica = mesh.get_local_rank("pp"), mesh.get_local_rank("dp")
    is_first, is_last = place == 0, place == num_stages - 1
    loader = StageLoader(ensure(config.data), config, training_stage)
    layers = decoder_layers(config.model, seed=config.run.seed)
    mine = [layers[index] for index in cut(config, training_stage)[place]]
    model = Decoder(mine)
    _shard(model, mesh["dp"])
    end = model.sequence[0 if is_first else -1]
    tied_weight = next(end.parameters()) if config.model.tied_embeddings else None
    optimizer = torch.optim.AdamW(
        [group | {"fused": True} for group in adamw(config.optimizer, model.canonical_parameters()).param_groups]
    )
    num_tokens = 1

    def loss_of(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        return summed_cross_entropy(logits_BTV, labels_BT) / num_tokens

    schedule = Schedule1F1B(
        PipelineStage(model, place, num_stages, torch.device("cpu"), group=mesh.get_group("pp")),
        config.accumulation_steps(training_stage),
        loss_fn=loss_of,
        scale_grads=False,
    )
    steps.open()
    for step in count():
        batches = loader.micro_batches(step, replica=replica, num_replicas=num_replicas)
        num_tokens = num_replicas * sum(batch.num_tokens for batch in batches)
        inputs = (torch.cat([batch.input_ids_BT for batch in batches]),) if is_first else ()
        losses: list[Tensor] | None = [] if is_last else None
        target = torch.cat([batch.labels_BT for batch in batches]) if is_last else None
        schedule.step(*inputs, target=target, losses=losses, return_outputs=False)
        if tied_weight is not None:
            assert isinstance(tied_weight.grad, DTensor)
            dist.all_reduce(tied_weight.grad.to_local(), group=mesh.get_group("pp"))
        counted = [p for p in model.parameters() if is_first or p is not tied_weight]
        _clip(list(model.parameters()), counted, mesh, max_norm=config.optimizer.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        steps.after_step(torch.stack(losses).sum().item() if losses else 0.0)


def _shard(model: Decoder, replicas: DeviceMesh) -> None:
    """Shard every layer, and the module around them, over the replicas of their pipeline stage."""
    for layer in model.sequence:
        fully_shard(layer, mesh=replicas, reshard_after_forward=False)
    fully_shard(model, mesh=replicas, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is already divided by the global batch's tokens
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums


def _clip(parameters: list[nn.Parameter], counted: list[nn.Parameter], mesh: DeviceMesh, *, max_norm: float) -> None:
    """Clip by the norm over all pipeline stages, as torchtitan does; a tied weight's copy is not `counted`."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in counted if p.grad is not None])
    assert isinstance(norm, DTensor)
    square = norm.full_tensor().square()
    dist.all_reduce(square, group=mesh.get_group("pp"))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, square.sqrt())
