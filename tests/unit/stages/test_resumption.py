from dataclasses import replace
from pathlib import Path

import pytest

from training.checkpoint.manifest import File, Manifest, Progress
from training.config.load import compose, config_hash
from training.config.schema import RunConfig
from training.config.typed import to_plain
from training.errors import ConfigError, CorruptCheckpoint, DataError
from training.stages.curriculum import learning_rate
from training.stages.resumption import changes_since

WHERE = Path("checkpoints/step-00000004")
EARLIER = compose(["experiment=smoke"])


def written(step: int = 4, stage: str = "pretrain") -> Manifest:
    """What a run with the smoke config wrote after some steps of a training stage of 9."""
    stage_step = step - EARLIER.first_step(stage)
    progress = Progress(
        step=step,
        training_stage=stage,
        stage_step=stage_step,
        samples=8 * stage_step,
        tokens=512 * step,
        optimizer_updates=step,
        skips_in_a_row=0,
        lr=learning_rate(EARLIER, stage, stage_step - 1),
        config_hash=config_hash(EARLIER),
        data_fingerprint="data",
    )
    files = (File(name="rank-00000.safetensors", num_bytes=1, sha256=""),)
    return Manifest(progress=progress, layout="", config=to_plain(EARLIER), attempt=1, slices=(), files=files)


def changes(*overrides: str, manifest: Manifest | None = None, data: str = "data") -> dict[str, tuple[object, object]]:
    config: RunConfig = compose(["experiment=smoke", *overrides])
    found = changes_since(WHERE, manifest or written(), config, data_fingerprint=data)
    return {change.key: (change.old, change.new) for change in found}


def test_the_same_config_goes_on_without_a_change() -> None:
    assert changes() == {}


def test_another_layout_is_no_question_but_is_told() -> None:
    assert changes("cluster.processes_per_node=4", "stages.pretrain.micro_batch_sequences=1") == {
        "cluster.processes_per_node": (2, 4),
        "stages.pretrain.micro_batch_sequences": (2, 1),
    }


def test_a_guarded_key_needs_a_word() -> None:
    with pytest.raises(ConfigError, match=r"resume\.allow=\[optimizer\.weight_decay\]"):
        changes("optimizer.weight_decay=0.2")
    assert changes("optimizer.weight_decay=0.2", "resume.allow=[optimizer.weight_decay]") == {
        "optimizer.weight_decay": (0.1, 0.2)
    }


@pytest.mark.parametrize(
    "override",
    [
        "stages.pretrain.global_batch_sequences=16",
        "stages.pretrain.batch_ramp=[{until_tokens: 1024, global_batch_sequences: 4}]",
        "stages.pretrain.sequence_length=32",
        "stages.pretrain.mixture.kjv=3.0",
    ],
)
def test_a_begun_training_stage_is_counted_as_it_was_even_with_a_word(override: str) -> None:
    with pytest.raises(ConfigError, match="4 steps of this training stage are done"):
        changes(override, "resume.allow=[stages]")


def test_a_training_stage_that_has_not_begun_may_change_on_purpose() -> None:
    assert changes("stages.anneal.global_batch_sequences=16", "resume.allow=[stages.anneal]") == {
        "stages.anneal.global_batch_sequences": (8, 16)
    }


def test_a_training_stage_cannot_become_shorter_than_what_is_done() -> None:
    with pytest.raises(ConfigError, match=r"that is 3 steps, and 4 are done\n  -> stages\.pretrain\.tokens=2048"):
        changes("stages.pretrain.tokens=1536", "resume.allow=[stages.pretrain.tokens]")
    assert changes("stages.pretrain.tokens=2048", "resume.allow=[stages.pretrain.tokens]")


def test_a_complete_training_stage_is_frozen() -> None:
    with pytest.raises(ConfigError, match="is complete"):
        changes("stages.pretrain.tokens=9216", "resume.allow=[stages]", manifest=written(9))


def test_other_data_are_refused_unless_they_were_changed_on_purpose() -> None:
    with pytest.raises(DataError, match="trained on data data, prepared now is other"):
        changes(data="other")
    assert changes("data.held_out_fraction=0.1", "resume.allow=[data]", data="other")


def test_a_schedule_that_would_have_given_another_rate_is_noticed() -> None:
    manifest = written()
    wrong = replace(manifest, progress=replace(manifest.progress, lr=manifest.progress.lr * (1 + 1e-9)))
    with pytest.raises(CorruptCheckpoint, match="the schedule gives"):
        changes(manifest=wrong)


SKIPS = "stages.pretrain.skip_batches=[{first_batch: %d, num_batches: 1}]"


def test_batches_that_are_still_to_come_can_be_skipped_from_now_on() -> None:
    allowed = "resume.allow=[stages.pretrain.skip_batches]"
    found = changes(SKIPS % 4, allowed)
    assert found == {"stages.pretrain.skip_batches": ([], [{"first_batch": 4, "num_batches": 1}])}
    with pytest.raises(ConfigError, match=r"skip_batches.*4 steps .* are done.*\n.*still to come"):
        changes(SKIPS % 3, allowed)


@pytest.mark.parametrize(("key", "value"), [("kind", "anneal"), ("packing", "best_fit"), ("max_epochs", "{kjv: 2.0}")])
def test_how_samples_are_made_stays_in_a_training_stage_that_has_begun(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"stages\.pretrain\.{key}.*4 steps .* are done"):
        changes(f"stages.pretrain.{key}={value}", f"resume.allow=[stages.pretrain.{key}]")


def test_a_mixture_that_changes_at_shares_of_the_tokens_keeps_their_number() -> None:
    change = "stages.pretrain.mixture_changes=[{from_fraction: 0.5, mixture: {kjv: 1.0}}]"
    before = compose(["experiment=smoke", change])
    manifest = replace(written(), config=to_plain(before))
    allowed = "resume.allow=[stages.pretrain.tokens]"
    with pytest.raises(ConfigError, match=r"stages\.pretrain\.tokens.*changes at shares"):
        changes(change, "stages.pretrain.tokens=9216", allowed, manifest=manifest)
