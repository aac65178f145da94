"""What a worker does with one live engine besides training on: load foreign checkpoints, score, meet a NaN."""

from collections.abc import Callable
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.configs import STAGE, global_batch, micro_batches
from training.checkpoint.load import CheckpointReader
from training.checkpoint.manifest import Progress
from training.checkpoint.saver import Saver
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.engine.base import StepResult
from training.engine.process_group import ProcessGroup
from training.engine.stateful import StatefulEngine
from training.models.decoder import Decoder, decoder_layers
from training.models.inference import KeyValueCache
from training.models.layers import DecoderBlock, TokenEmbedding
from training.models.loss import IGNORED_LABEL


def crossings(
    engine: Any,
    processes: ProcessGroup,
    sources: dict[str, Path],
    folder: Path,
    train_on: Callable[[], dict[str, list[float]]],
) -> dict[str, Any]:
    """Load each source, save it again at once, train on."""
    seen = {}
    for source, checkpoint in sources.items():
        progress = engine.load(checkpoint).progress
        again = save(engine, processes, folder / source, progress)
        seen[source] = {"differing": differing_tensors(checkpoint, again), "step": progress.step, **train_on()}
    return seen


def save(engine: Any, processes: ProcessGroup, folder: Path, progress: Progress) -> Path:
    """Commit an engine's state and wait for it."""
    saver = Saver(processes, config={}, asynchronous=False)
    saver.begin(engine.snapshot, directory=folder, progress=progress, layout=engine.layout.describe())
    outcome = saver.finish()
    assert outcome.checkpoint is not None, outcome.failure
    return outcome.checkpoint


def progress_at(step: int) -> Progress:
    """The progress of a run that skipped no step."""
    return Progress(
        step=step,
        training_stage=STAGE,
        stage_step=step,
        samples=0,
        tokens=0,
        optimizer_updates=step,
        skips_in_a_row=0,
        lr=0.0,
        config_hash="test",
        data_fingerprint="test",
    )


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Names of tensors that are not bitwise the same in two checkpoints, whatever the slices."""
    readers = [CheckpointReader(path) for path in (one, other)]
    tensors = [reader.manifest.tensors() for reader in readers]
    if tensors[0].keys() != tensors[1].keys():
        return sorted(tensors[0].keys() ^ tensors[1].keys())
    whole = {name: prod(pieces[0].shape) for name, pieces in tensors[0].items()}
    return [
        name
        for name, numel in whole.items()
        if not np.array_equal(readers[0].read(name, 0, numel), readers[1].read(name, 0, numel))
    ]


def one_step(engine: Any, config: RunConfig, processes: ProcessGroup, step: int, lrs: list[float]) -> StepResult:
    batches = micro_batches(
        step,
        replica=engine.layout.replica_of(processes.rank),
        num_replicas=engine.layout.num_replicas,
        micro_batch=config.stages[STAGE].micro_batch_sequences,
    )
    return engine.train_batch(batches, lr=lrs[step])


def scoring_batch(num_sequences: int, num_tokens: int) -> MicroBatch:
    """Sequences of a shape that training never uses."""
    whole = global_batch(step=99)
    return MicroBatch(
        input_ids_BT=whole.input_ids_BT[:num_sequences, :num_tokens].contiguous(),
        labels_BT=whole.labels_BT[:num_sequences, :num_tokens].contiguous(),
    )


def plain_logprobs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """log p summed over the valid targets of each sequence."""
    valid_BT = labels_BT != IGNORED_LABEL
    chosen_BT = logits_BTV.log_softmax(-1).gather(-1, labels_BT.clamp(min=0)[..., None])[..., 0]
    return (chosen_BT.double() * valid_BT).sum(-1)


def scoring(
    engine: Any, config: RunConfig, processes: ProcessGroup, checkpoint: Path, lrs: list[float], first: int
) -> dict[str, Any]:
    """Train two steps without and with evaluations in between; compare scores with a plain Decoder and among ranks."""
    engine.load(checkpoint)
    undisturbed = [one_step(engine, config, processes, step, lrs).loss for step in (first, first + 1)]
    engine.load(checkpoint)
    plain = plain_decoder(config, checkpoint)
    errors, equal_on_ranks, exact = [], True, True
    disturbed = []
    for step, (num_sequences, num_tokens) in zip((first, first + 1), ((3, 11), (5, 24)), strict=True):
        batch = scoring_batch(num_sequences, num_tokens)
        scores = engine.score(batch)
        cache = KeyValueCache(num_sequences, num_tokens)
        lengths_B = torch.arange(num_sequences) % 3 + num_tokens - 3
        next_B = engine.next_tokens(batch.input_ids_BT[:, :-1], lengths_B, cache)
        after_B = engine.next_tokens(next_B[:, None], torch.ones_like(next_B), cache)
        if step == first:  # the plain model has the checkpoint's weights, before any step
            logits_BTV = plain(batch.input_ids_BT)
            logprob_B = plain_logprobs(logits_BTV, batch.labels_BT)
            errors.append(((scores.logprob_B - logprob_B).abs() / logprob_B.abs()).max().item())
            rows_B = torch.arange(num_sequences)
            exact = torch.equal(next_B, logits_BTV[rows_B, lengths_B - 1].argmax(-1))
            for row, length in enumerate(lengths_B.tolist()):  # each alone, without padding or cache
                ids_BT = torch.cat([batch.input_ids_BT[row, :length], next_B[row : row + 1]])[None]
                exact = exact and int(after_B[row]) == int(plain(ids_BT)[0, -1].argmax())
        seen = [torch.empty_like(scores.logprob_B) for _ in range(processes.world_size)]
        dist.all_gather(seen, scores.logprob_B.contiguous(), group=processes.cpu_group)
        equal_on_ranks = equal_on_ranks and all(torch.equal(seen[0], other) for other in seen)
        disturbed.append(one_step(engine, config, processes, step, lrs).loss)
    return {
        "undisturbed": undisturbed,
        "disturbed": disturbed,
        "equal_on_ranks": equal_on_ranks,
        "tokens_equal_plain": exact,
        "largest_relative_error": max(errors),
    }


@torch.no_grad()
def plain_decoder(config: RunConfig, checkpoint: Path) -> Decoder:
    model = Decoder(decoder_layers(config.model, seed=0))
    reader = CheckpointReader(checkpoint)
    for name, parameter in model.canonical_parameters():
        values = torch.from_numpy(reader.read(f"weight/{name}", 0, parameter.numel()))
        parameter.copy_(values.view_as(parameter))
    for name, router in model.routers():
        if router.bias_E is not None:
            router.bias_E.copy_(torch.from_numpy(reader.read(f"weight/{name}.mlp.gate.bias", 0, len(router.bias_E))))
    return model.requires_grad_(False)


def poisonings(
    engine: Any, config: RunConfig, processes: ProcessGroup, checkpoint: Path, lrs: list[float], first: int
) -> dict[str, Any]:
    """A NaN in the gradient of one rank's first layer, once: what every rank saw of it, by poisoned rank."""
    batch = scoring_batch(3, 11)
    found = {}
    for victim in range(processes.world_size):
        engine.load(checkpoint)
        expected = one_step(engine, config, processes, first, lrs)
        engine.load(checkpoint)
        before, scores_before = snapshot(engine), engine.score(batch).logprob_B
        with poisoned_gradient(engine, active=processes.rank == victim):
            result = one_step(engine, config, processes, first, lrs)
        unchanged = all(torch.equal(one, other) for one, other in zip(before, snapshot(engine), strict=True))
        unchanged = unchanged and torch.equal(scores_before, engine.score(batch).logprob_B)
        after = one_step(engine, config, processes, first, lrs)
        found[str(victim)] = {
            "loss_is_finite": torch.isfinite(torch.tensor(result.loss)).item(),
            "skipped_everywhere": processes.agree(result.skipped),
            "culprits": processes.gather_text(result.culprit),
            "poisoned_layer": processes.gather_text(first_layer(engine)[0])[victim],
            "stage": engine.layout.pipeline_stage_of(victim),
            "unchanged_everywhere": processes.agree(unchanged),
            "next": [after.loss, after.grad_norm, after.skipped],
            "expected_next": [expected.loss, expected.grad_norm, False],
        }
    return found


def snapshot(engine: StatefulEngine) -> list[torch.Tensor]:
    """Copies of this rank's fp32 weights and moments."""
    fragments = [fragment for state in engine._states for fragment in state.fragments]
    return [values.clone() for fragment in fragments for values in fragment.tensors.values()]


def first_layer(engine: StatefulEngine) -> tuple[str, nn.Module]:
    """Canonical name and module of the first layer that this rank runs."""
    module = engine._engines[0].module
    kinds = TokenEmbedding | DecoderBlock
    if isinstance(module, Decoder):
        return next((name, layer) for name, layer in zip(module.names, module.sequence, strict=True))
    return "", next(layer for layer in module.modules() if isinstance(layer, kinds))


@contextmanager
def poisoned_gradient(engine: StatefulEngine, *, active: bool):
    """Inside, the gradient that comes back to this rank's first layer is NaN; the loss stays finite."""
    _, layer = first_layer(engine)

    def spoil(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if active and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    handle = layer.register_forward_hook(spoil)
    yield
    handle.remove()
