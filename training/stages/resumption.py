"""Whether a run may go on from a checkpoint with the config and the data of this start. Pure."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from training.checkpoint.manifest import LeftOut, Manifest, Progress
from training.config.batch_sizes import BatchRampStep, batch_sizes
from training.config.resume_policy import Change, ChangeKind, compare
from training.config.schema import RunConfig
from training.errors import ConfigError, CorruptCheckpoint, DataError
from training.fault_tolerance.recovery import batch_of
from training.stages.curriculum import learning_rate
from training.stages.recovering import skipped_batches

_COUNTED_IN = (
    "kind",
    "global_batch_sequences",
    "batch_ramp",
    "sequence_length",
    "mixture",
    "mixture_changes",
    "max_epochs",
    "packing",
    "min_document_tokens",
)
"""Keys of a training stage that its sample order and its steps are counted in."""


def changes_since(checkpoint: Path, manifest: Manifest, config: RunConfig, *, data_fingerprint: str) -> list[Change]:
    """Return what is another than when a checkpoint was written, if the run may go on from it.

    Raises:
        ConfigError: something changed that may not, or not without a word in resume.allow.
        DataError: the prepared data is another.
        CorruptCheckpoint: the schedule would not have given the learning rate that was used.
    """
    progress, names = manifest.progress, list(config.stages)
    reached = names.index(progress.training_stage) if progress.training_stage in names else 0
    was_complete = _was_complete(manifest)
    changes = compare(manifest.config, config, complete=names[: reached + was_complete])
    numbers = [change.key for change in changes if change.kind is not ChangeKind.free]
    if not was_complete:
        _check_begun_stage(changes, manifest, config)
    if progress.data_fingerprint != data_fingerprint and not any(key.startswith("data.") for key in numbers):
        raise DataError(
            f"{checkpoint}: trained on data {progress.data_fingerprint}, prepared now is {data_fingerprint}\n"
            "  -> restore that data, or start a new run with resume=never"
        )
    if not numbers:
        _check_learning_rate(checkpoint, progress, config)
    return changes


def _was_complete(manifest: Manifest) -> bool:
    """Return whether a checkpoint ends its training stage, by the config it was written with."""
    stage = manifest.config["stages"][manifest.progress.training_stage]
    sizes = batch_sizes(
        [BatchRampStep(**step) for step in stage.get("batch_ramp", ())],
        global_batch_sequences=stage["global_batch_sequences"],
        sequence_length=stage["sequence_length"],
    )
    return manifest.progress.stage_step >= sizes.num_batches(stage["tokens"])


def _check_begun_stage(changes: Sequence[Change], manifest: Manifest, config: RunConfig) -> None:
    """Raise ConfigError if a training stage that has begun would be counted in other units from now on."""
    progress = manifest.progress
    name, done = progress.training_stage, progress.stage_step
    remedy = f"keep it; a training stage added at the end (resume.allow=[stages.NAME]) may differ from {name}"
    for change in changes:
        for key in _COUNTED_IN:
            if change.key == f"stages.{name}.{key}" or change.key.startswith(f"stages.{name}.{key}."):
                reason = f"{done} steps of this training stage are done with {change.old}, its samples are counted so"
                raise ConfigError(change.key, change.new, reason, remedy)
            if change.key == f"stages.{name}.tokens" and config.stages[name].mixture_changes:
                reason = (
                    f"{done} steps of this training stage are done, and its mixture changes at shares of its tokens"
                )
                raise ConfigError(change.key, change.new, reason, remedy)
    _check_skipped(manifest, config)
    if config.num_steps(name) < done:
        tokens, done_tokens = config.stages[name].tokens, config.batch_sizes(name).tokens_before(done)
        reason = f"that is {config.num_steps(name)} steps, and {done} are done"
        raise ConfigError(f"stages.{name}.tokens", tokens, reason, f"stages.{name}.tokens={done_tokens} ends it now")


def _check_skipped(manifest: Manifest, config: RunConfig) -> None:
    """Raise ConfigError if other batches are skipped now among those that are behind."""
    progress = manifest.progress
    name = progress.training_stage

    def windows_behind(skipped: Iterable[LeftOut]) -> set[tuple[int, int]]:
        last = batch_of((*progress.left_out, *skipped_then), name, progress.stage_step - 1)
        mine = [window for window in skipped if window.training_stage == name and window.first_batch <= last]
        return {(window.first_batch, window.num_batches) for window in mine}

    skipped_then = [
        LeftOut(training_stage=name, **window) for window in manifest.config["stages"][name].get("skip_batches", ())
    ]
    if windows_behind(skipped_then) != windows_behind(skipped_batches(config)):
        raise ConfigError(
            f"stages.{name}.skip_batches",
            [(window.first_batch, window.num_batches) for window in config.stages[name].skip_batches],
            f"{progress.stage_step} steps of this training stage are done, and it names batches before that",
            f"keep {sorted(windows_behind(skipped_then))}; only batches that are still to come can be skipped",
        )


def _check_learning_rate(checkpoint: Path, progress: Progress, config: RunConfig) -> None:
    planned = learning_rate(config, progress.training_stage, progress.stage_step - 1)
    if progress.lr != planned:
        raise CorruptCheckpoint(
            f"{checkpoint}: its last step used learning rate {progress.lr}, the schedule gives {planned}\n"
            "  -> another version of Autarky wrote it: go on with that version, or start a new run with "
            f"init_from=checkpoint:{checkpoint}"
        )
