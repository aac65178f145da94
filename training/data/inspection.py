"""What is in prepared data and in a run's batches, as text for people."""

from collections.abc import Iterator

from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.data.sample_ledger import Use
from training.data.shards import PreparedData
from training.data.units import Piece
from training.errors import ConfigError

_SHOWN_TOKENS = 48
_SHOWN_CHARACTERS = 72


def batch_place(config: RunConfig, given: str) -> tuple[str, int]:
    """Return (training stage, place in its order, from 0) of `STAGE:PLACE`, or of a step of the run, from 1.

    A step's place is that in a run in which no batch was left out.

    Raises:
        ConfigError: it is neither, or there is no such one.
    """
    name, _, number = given.rpartition(":")
    if number.isdecimal() and name in config.stages:
        return name, int(number)
    if not name and number.isdecimal():
        for stage in config.stages:
            place = int(number) - 1 - config.first_step(stage)
            if 0 <= place < config.num_steps(stage):
                return stage, place
    steps = sum(config.num_steps(stage) for stage in config.stages)
    raise ConfigError(
        "--batch",
        given,
        "it is neither a step of the run nor STAGE:PLACE",
        f"a step from 1 to {steps}, or a training stage of {list(config.stages)} and a place counted from 0",
    )


def describe_batch(prepared: PreparedData, loader: StageLoader, training_stage: str, batch: int) -> Iterator[str]:
    """Yield lines: the batch, each of its samples, and the records in each of them with the beginning of their text."""
    yield f"training stage {training_stage}, batch {batch}, batch_id {loader.batch_id(batch)}"
    for index in loader.batch_samples(batch):
        sample = loader.sample(index)
        yield f"{index:>8}  {sample.source} unit {sample.unit}, {len(sample.pieces)} records"
        stream = prepared.train(sample.source)
        for piece in sample.pieces:
            shown = stream.tokens(piece.first, min(piece.stop, piece.first + _SHOWN_TOKENS)).tolist()
            text = prepared.tokenizer.decode(shown)[:_SHOWN_CHARACTERS]
            yield f"{'':>10}{stream.id_of(piece.record)} {_range(prepared, sample.source, piece)}: {text!r}"


def describe_uses(record_id: str, uses: list[Use]) -> Iterator[str]:
    """Yield lines: when a record was used."""
    if not uses:
        yield f"{record_id}: it was not used"
    for use in uses:
        changed = ", which changed nothing" if use.skipped else ""
        yield (
            f"{record_id} ({use.source}): step {use.step} of {use.training_stage}, attempt {use.attempt}, sample "
            f"{use.sample}, {use.num_targets} tokens{changed}"
        )


def _range(prepared: PreparedData, source: str, piece: Piece) -> str:
    start, end = prepared.train(source).starts_of(piece.record)
    return f"tokens {piece.first - start} to {piece.stop - start} of {end - start}"
