"""Contestant: the same module, batches, loss and AdamW in torch's DistributedDataParallel, as one would write it."""

from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.turns import Steps
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.engine.optimizer import adamw
from training.models.decoder import Decoder, decoder_layers
from training.models.loss import summed_cross_entropy


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for ever."""
    dist.init_process_group("gloo")
    world_size = dist.get_world_size()
    loader = StageLoader(ensure(config.data), config, training_stage)
    decoder = Decoder(decoder_layers(config.model, seed=config.run.seed))
    model = DistributedDataParallel(decoder)
    optimizer = adamw(config.optimizer, decoder.canonical_parameters())
    steps.open()
    for step in count():
        batches = loader.micro_batches(step, replica=dist.get_rank(), num_replicas=world_size)
        num_tokens = world_size * sum(batch.num_tokens for batch in batches)
        loss = torch.zeros(())
        for batch in batches[:-1]:
            with model.no_sync():
                loss += _backward(model, batch, world_size / num_tokens)
        loss += _backward(model, batches[-1], world_size / num_tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        steps.after_step(loss.item() / world_size)


def _backward(model: DistributedDataParallel, batch: MicroBatch, scale: float) -> Tensor:
    loss = summed_cross_entropy(model(batch.input_ids_BT), batch.labels_BT) * scale
    loss.backward()
    return loss.detach()
