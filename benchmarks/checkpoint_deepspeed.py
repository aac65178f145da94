"""Contestant: DeepSpeed's own save_checkpoint and load_checkpoint, under ZeRO-3.

Variant "native" loads what was saved under the same layout; "universal" loads what
`python -m deepspeed.checkpoint.ds_to_universal` made of it. The training is that of our ZeRO engine: the same
dictionary, optimizer and modules.
"""

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_modules

from benchmarks.checkpoint_contestant import micro_batches
from training.config.deepspeed_config import deepspeed_config
from training.config.schema import RunConfig
from training.engine import process_group
from training.engine.optimizer import adamw
from training.models.decoder import Decoder, decoder_layers
from training.models.layers import DecoderBlock
from training.models.loss import summed_cross_entropy


def build(config: RunConfig, training_stage: str, variant: str) -> "DeepSpeedCheckpoint":
    """Return the contestant on this rank."""
    process_group.start(config.fault_tolerance.collective_timeout_seconds)
    return DeepSpeedCheckpoint(config, training_stage, is_universal=variant == "universal")


class DeepSpeedCheckpoint:
    """See `Contestant`."""

    def __init__(self, config: RunConfig, training_stage: str, *, is_universal: bool) -> None:
        model = Decoder(decoder_layers(config.model, seed=config.run.seed))
        set_z3_leaf_modules(model, [DecoderBlock])
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=adamw(config.optimizer, model.canonical_parameters()),
            config=deepspeed_config(config, training_stage) | {"checkpoint": {"load_universal": is_universal}},
        )
        self._engine: Any = engine
        self._config = config
        self._is_universal = is_universal

    def step(self, number: int) -> float:
        """See `Contestant.step`."""
        world_size = dist.get_world_size()
        batches = micro_batches(self._config, number, replica=dist.get_rank(), num_replicas=world_size)
        num_tokens = world_size * sum(batch.num_tokens for batch in batches)
        total = torch.zeros(())
        for batch in batches:
            loss = summed_cross_entropy(self._engine(batch.input_ids_BT), batch.labels_BT)
            self._engine.backward(loss * len(batches) * world_size / num_tokens)
            self._engine.step()
            total += loss.detach()
        dist.all_reduce(total)
        return total.item() / num_tokens

    def save(self, directory: Path, step: int) -> None:
        """See `Contestant.save`; it returns when everything is written."""
        self._engine.save_checkpoint(str(directory), tag=f"global_step{step}")

    def held_seconds(self) -> float:
        """Return 0: `save` waits."""
        return 0.0

    def is_written(self) -> bool:
        """Return True: `save` waits."""
        return True

    def finish(self) -> None:
        """Return at once: `save` waits."""

    def load(self, directory: Path) -> None:
        """See `Contestant.load`."""
        groups = self._engine.optimizer.optimizer.param_groups
        settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        path, _ = self._engine.load_checkpoint(str(directory))
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {directory}")
        if self._is_universal:
            # Two defects of 0.19.8 (runtime/zero/stage3.py, load_hp_checkpoint_state_from_checkpoint_dir_stage3):
            # all sub-groups share one count of steps, and every group gets the first one's settings.
            for state in self._engine.optimizer.optimizer.state.values():
                state["step"] = state["step"].clone()
            for group, values in zip(groups, settings, strict=True):
                group.update(values)
