"""Contestant: torch.distributed.checkpoint over FSDP2, in the way of torchtitan.

Variants: "sync" is `dcp.save`; "thread" and "process" are `dcp.async_save` with a stager that keeps its host memory,
and a thread or a process that writes. What is saved is what ZeRO-3 holds too, fp32 weights and both moments of AdamW,
each rank a half. FSDP2 rather than ZeRO-3's flat shards, because its DTensors are what DCP is made for: it writes each
rank's shards without a copy and loads them under any number of ranks.
"""

from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from benchmarks.checkpoint_contestant import micro_batches
from training.config.schema import RunConfig
from training.engine.optimizer import adamw
from training.models.decoder import Decoder, decoder_layers
from training.models.loss import summed_cross_entropy


def build(config: RunConfig, training_stage: str, variant: str) -> "DcpCheckpoint":
    """Return the contestant on this rank."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=config.fault_tolerance.collective_timeout_seconds))
    return DcpCheckpoint(config, variant)


class DcpCheckpoint:
    """See `Contestant`."""

    def __init__(self, config: RunConfig, variant: str) -> None:
        self._config = config
        self._model = _shard(Decoder(decoder_layers(config.model, seed=config.run.seed)))
        self._optimizer = adamw(config.optimizer, self._model.canonical_parameters())
        self._variant = variant
        # Pinned memory and copies that overlap with computing need a GPU; a writing process needs shared memory.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=variant == "process",
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        writers = dist.new_group(backend="gloo")
        assert isinstance(writers, dist.ProcessGroup)  # every rank is a member
        self._writers = writers
        """For the collectives of the thread that writes, apart from training's."""
        self._written: Future[Any] | None = None

    def step(self, number: int) -> float:
        """See `Contestant.step`."""
        world_size = dist.get_world_size()
        batches = micro_batches(self._config, number, replica=dist.get_rank(), num_replicas=world_size)
        num_tokens = world_size * sum(batch.num_tokens for batch in batches)
        total = torch.zeros(())
        for batch in batches:
            loss = summed_cross_entropy(self._model(batch.input_ids_BT), batch.labels_BT)
            (loss / num_tokens).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.gradient_clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        dist.all_reduce(total)
        return total.item() / num_tokens

    def save(self, directory: Path, step: int) -> None:
        """See `Contestant.save`."""
        path = str(directory / f"step-{step}")
        if self._variant == "sync":
            dcp.save(self._state(), checkpoint_id=path)
            return
        writers = AsyncCheckpointerType.PROCESS if self._variant == "process" else AsyncCheckpointerType.THREAD
        written = dcp.async_save(
            self._state(),
            checkpoint_id=path,
            process_group=self._writers,
            async_checkpointer_type=writers,
            async_stager=self._stager,
        )
        assert isinstance(written, Future)  # the other kind of answer belongs to asynchronous staging
        self._written = written

    def held_seconds(self) -> float:
        """Return 0: the state is copied before `save` returns."""
        return 0.0

    def is_written(self) -> bool:
        """See `Contestant.is_written`."""
        return self._written is None or self._written.done()

    def finish(self) -> None:
        """See `Contestant.finish`."""
        if self._written is not None:
            self._written.result()

    def load(self, directory: Path) -> None:
        """See `Contestant.load`."""
        (path,) = directory.iterdir()
        state = self._state()
        dcp.load(state, checkpoint_id=str(path))
        set_state_dict(
            self._model,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self._model, self._optimizer)
        return {"model": model, "optimizer": optimizer}


def _shard(model: Decoder) -> Decoder:
    """Shard every layer, and the module around them, over all ranks, as ZeRO-3 does."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.sequence:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is already divided by the global batch's tokens
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums
    return model
