"""What may be another when a run goes on: every key of the schema is free, guarded or frozen, and the hash agrees."""

import copy
import json
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.keys import without_none
from training.config.load import compose, config_hash
from training.config.resume_policy import POLICY, Change, ChangeKind, compare, covers, kind_of
from training.config.schema import ResumeConfig, RunConfig
from training.config.typed import to_plain, to_run_config
from training.errors import ConfigError

PLAIN_DEMO = compose(["experiment=demo"])
DEMO = compose(["experiment=demo", "+deepspeed.extra.comms_logger={enabled: true}"])
SAVED = json.loads(json.dumps(to_plain(DEMO)))
"""As a checkpoint's manifest holds it."""

GUARDED = {
    "precision",
    "model.dropout",
    "model.experts.bias_update_rate",
    "model.experts.balance_loss",
    "model.experts.balance_scope",
    "model.experts.z_loss",
    "model.experts.capacity_factor",
    "fault_tolerance.recovery.on_loss_spike",
    "fault_tolerance.recovery.window_steps",
    "fault_tolerance.recovery.min_steps",
    "fault_tolerance.recovery.threshold_sigmas",
    "fault_tolerance.recovery.grad_norm_sigmas",
    "fault_tolerance.recovery.patience_steps",
    "fault_tolerance.recovery.rewind_steps",
    "fault_tolerance.recovery.max_rollbacks",
    "deepspeed.extra.*",
    "data.sources.*.kind",
    "data.sources.*.path",
    "data.sources.*.max_documents",
    "data.held_out_fraction",
    "optimizer.lr",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.epsilon",
    "optimizer.weight_decay",
    "optimizer.gradient_clip_norm",
    "optimizer.muon.lr",
    "optimizer.muon.momentum",
    "optimizer.muon.weight_decay",
    "optimizer.muon.newton_schulz",
    "optimizer.groups.*.parameters",
    "optimizer.groups.*.lr_ratio",
    "optimizer.groups.*.weight_decay",
    "schedule.kind",
    "schedule.warmup_fraction",
    "schedule.decay_fraction",
    "schedule.final_ratio",
    "stages.*.schedule.kind",
    "stages.*.schedule.warmup_fraction",
    "stages.*.schedule.decay_fraction",
    "stages.*.schedule.final_ratio",
    "stages.*.mixture.*",
    "stages.*.tokens",
    "stages.*.sequence_length",
    "stages.*.document_mask",
    "stages.*.kind",
    "stages.*.mixture_changes",
    "stages.*.max_epochs.*",
    "stages.*.skip_batches",
    "stages.*.packing",
    "stages.*.min_document_tokens",
    "stages.*.preference.beta",
    "stages.*.preference.label_smoothing",
    "stages.*.preference.sft_weight",
    *(
        f"data.sources.*.{name}"
        for name in (
            "form",
            "hub.subset",
            "hub.split",
            "hub.revision",
            "text_field",
            "id_field",
            "max_record_bytes",
            "held_out_fraction",
            "licence",
            "tags",
        )
    ),
    *(f"data.near_duplicates.{name}" for name in ("similarity", "ngram_words", "num_hashes")),
    "data.contamination.benchmarks",
    "data.contamination.action",
    "data.shard_bytes",
    "stages.*.global_batch_sequences",
    "stages.*.batch_ramp",
    "stages.*.lr",
    "stages.*.eval_suite",
    "eval.suites.*.version",
    *(
        f"eval.suites.*.benchmarks.*.{name}"
        for name in (
            "items",
            "few_shot",
            "tries",
            "temperature",
            "top_p",
            "max_new_tokens",
            "chat",
            "compact",
            "held_out_fraction",
        )
    ),
    "eval.suites.*.max_length",
    "eval.suites.*.seed",
    "eval.suites.*.held_out_source",
    "eval.suites.*.held_out_documents",
    "eval.suites.*.document_tokens",
    "eval.suites.*.conversation_source",
    "eval.suites.*.held_out_conversations",
    "eval.suites.*.multiple_choice_items",
    "eval.suites.*.prompts",
    "eval.suites.*.sample_tokens",
    "eval.suites.*.batch_sequences",
}
"""Spelt out, so that a new key has to be classified by a person."""

FROZEN = [
    "model",
    "data.tokenizer",
    "data.tokenizer_vocab_size",
    "data.end_of_document_token",
    "optimizer.kind",
    "run.name",
    "run.seed",
    "init_from",
]


def schema_keys(hint: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every key of the schema; `*` stands for an entry of a dictionary."""
    for name, child in get_type_hints(hint).items():
        child, key = without_none(child), f"{prefix}{name}"
        if get_origin(child) is dict:
            child, key = get_args(child)[1], f"{key}.*"
        if is_dataclass(child):
            yield from schema_keys(child, f"{key}.")
        else:
            yield key


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, child in node.items():
        key = f"{prefix}{name}"
        if isinstance(child, dict):
            yield from leaves(child, f"{key}.")
        else:
            yield key, child


def with_value(plain: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(plain)
    *parents, name = key.split(".")
    section = changed
    for parent in parents:
        section = section[parent]
    section[name] = value
    return changed


def allowing(*entries: str, config: RunConfig = DEMO) -> RunConfig:
    return replace(config, resume=ResumeConfig(allow=list(entries)))


def without(section: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != name}


@pytest.mark.parametrize("key", list(schema_keys()))
def test_every_key_of_the_schema_is_classified(key: str) -> None:
    expected = ChangeKind.free
    if key in GUARDED:
        expected = ChangeKind.guarded
    elif any(covers(pattern, key) for pattern in FROZEN):
        expected = ChangeKind.frozen
    assert kind_of(key.replace("*", "name")) is expected, "say which it is, in POLICY and here"


def test_no_row_of_the_table_is_without_effect() -> None:
    keys = list(schema_keys())
    assert set(keys) >= GUARDED
    for index, (pattern, kind, why) in enumerate(POLICY):
        earlier = [other for other, _, _ in POLICY[:index]]
        covered = [key for key in keys if covers(pattern, key) and not any(covers(other, key) for other in earlier)]
        assert covered, pattern
        assert bool(why) == (kind is ChangeKind.frozen), pattern


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("optimizer.lr", "optimizer.lr", True),
        ("optimizer", "optimizer.lr", True),
        ("optimizer.lr", "optimizer", False),
        ("stages.*.lr", "stages.pretrain.lr", True),
        ("stages.*.lr", "stages.pretrain.schedule.lr", False),
        ("stages.pre*.lr", "stages.pretrain.lr", True),
        ("*.lr", "stages.pretrain.lr", False),
        ("*", "stages.pretrain.lr", True),
        ("optimizer.l", "optimizer.lr", False),
        ("model", "model_card", False),
    ],
)
def test_a_pattern_covers_keys_and_whole_sections(pattern: str, key: str, expected: bool) -> None:
    assert covers(pattern, key) is expected


def test_the_same_config_has_no_changes() -> None:
    assert compare(SAVED, DEMO) == []
    assert compare(SAVED, DEMO, complete=list(DEMO.stages)) == []


def test_how_a_start_came_about_is_no_change_of_the_run() -> None:
    assert compare(SAVED, allowing("optimizer.lr")) == []
    assert compare({**SAVED, "resume": "never"}, DEMO) == [], "as another version wrote it"


@given(st.sampled_from([leaf for leaf in leaves(SAVED) if not covers("resume", leaf[0])]), st.data())
def test_any_single_change_is_passed_or_refused_as_its_key_is_classified(
    leaf: tuple[str, Any], data: st.DataObject
) -> None:
    key, new = leaf
    old = data.draw(st.one_of(st.none(), st.integers(), st.text(max_size=5)).filter(lambda value: value != new))
    saved, kind = with_value(SAVED, key, old), kind_of(key)
    change = Change(key=key, old=old, new=new, kind=kind)
    others = allowing("precision" if key != "precision" else "optimizer.lr")
    if kind is ChangeKind.free:
        assert compare(saved, DEMO) == [change]
        return
    with pytest.raises(ConfigError) as refused:
        compare(saved, others)
    assert refused.value.key == key
    if kind is ChangeKind.guarded:
        entries = refused.value.remedy.partition("resume.allow=[")[2].partition("]")[0].split(",")
        assert covers(entries[-1], key)
        assert compare(saved, allowing(*entries)) == compare(saved, allowing(key)) == [change]
        assert compare(saved, allowing("*")) == [change]
    else:
        assert "a new run (resume=never)" in refused.value.remedy
        with pytest.raises(ConfigError):
            compare(saved, allowing("*"))


OVERRIDES = [
    "run.seed=1",
    "run.name=other",
    "run.root=/elsewhere",
    "resume=auto",
    "precision=bf16",
    "model.dropout=0.1",
    "model.norm_epsilon=1e-6",
    "optimizer.lr=1e-4",
    "stages.pretrain.lr=1e-4",
    "stages.pretrain.tokens=99",
    "stages.pretrain.micro_batch_sequences=2",
    "stages.anneal.gate=null",
    "stages.anneal.parallel.zero_stage=1",
    "+stages.anneal.mixture.kjv=0.5",
    "~stages.anneal.mixture.python",
    "eval.at_start=false",
    "eval.contamination=false",
    "cluster=local",
    "cluster.processes_per_node=4",
    "checkpoint.keep_last=9",
    "+stages.late=${stages.pretrain}",
    "~stages.anneal",
    "stages.anneal.schedule=null",
    "+deepspeed.extra.a=1",
    "reporting.wandb.mode=disabled",
    "data.held_out_fraction=0.1",
]


@pytest.mark.parametrize("override", OVERRIDES)
def test_the_hash_is_another_exactly_if_more_than_free_keys_changed(override: str) -> None:
    changed = compose(["experiment=demo", override])
    try:
        compared = compare(to_plain(PLAIN_DEMO), changed)
        only_free = all(change.kind is ChangeKind.free for change in compared)
    except ConfigError:
        only_free = False
    assert (config_hash(PLAIN_DEMO) == config_hash(changed)) is only_free


def experts(*overrides: str) -> RunConfig:
    return compose(["experiment=demo", "model=tiny_moe", *overrides], to_plan=True)


@pytest.mark.parametrize(
    "override",
    ["bias_update_rate=0.01", "balance_loss=0.0", "balance_scope=micro_batch", "z_loss=0.001", "capacity_factor=1.5"],
)
def test_how_experts_are_balanced_may_change_on_purpose(override: str) -> None:
    saved, key = to_plain(experts()), f"model.experts.{override.partition('=')[0]}"
    changed = experts(f"model.experts.{override}")
    with pytest.raises(ConfigError, match=key):
        compare(saved, changed)
    assert [change.key for change in compare(saved, allowing(key, config=changed))] == [key]


def test_a_routers_bias_neither_comes_nor_goes() -> None:
    key = "model.experts.bias_update_rate"
    with_bias, without_bias = experts(), experts(f"{key}=0.0")
    for old, new in ((with_bias, without_bias), (without_bias, with_bias)):
        with pytest.raises(ConfigError, match="with 0 routers have no bias") as refused:
            compare(to_plain(old), allowing(key, config=new))
        assert refused.value.key == key
        assert "to go on" in refused.value.remedy


def test_a_refusal_names_key_values_reason_and_the_remedy_that_works() -> None:
    lower = compose(
        ["experiment=demo", "stages.pretrain.lr=0.0001", "stages.anneal.tokens=99", "resume.allow=[precision]"]
    )
    saved = to_plain(compose(["experiment=demo", "stages.pretrain.lr=0.0002"]))
    with pytest.raises(ConfigError) as refused:
        compare(saved, lower)
    assert str(refused.value).splitlines() == [
        "stages.pretrain.lr=0.0001: the earlier start had 0.0002, and this changes what is trained "
        "(also stages.anneal.tokens: 65536 there, 99 here)",
        "  -> resume.allow=[precision,stages.pretrain.lr,stages.anneal.tokens] changes it on purpose; without it, give "
        "0.0002 to go on as before, or start a new run (resume=never)",
    ]
    remedy = allowing("precision", "stages.pretrain.lr", "stages.anneal.tokens", config=lower)
    assert [change.key for change in compare(saved, remedy)] == ["stages.pretrain.lr", "stages.anneal.tokens"]


def test_frozen_wins_over_guarded_and_says_why() -> None:
    with pytest.raises(ConfigError) as refused:
        compare(SAVED, compose(["experiment=demo", "optimizer.beta1=0.8", "run.seed=7", "resume.allow=['*']"]))
    assert refused.value.key == "run.seed"
    assert "sample order" in refused.value.reason
    assert "give 0 to go on, or start a new run" in refused.value.remedy
    assert "init_from=checkpoint:" in refused.value.remedy


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (["pretrain", "anneal", "late"], False),
        (["pretrain", "late", "anneal"], True),
        (["anneal", "pretrain"], True),
        (["pretrain"], True),
        (["pretrain", "cooldown"], True),
    ],
)
def test_a_training_stage_may_only_be_added_at_the_end(stages: list[str], frozen: bool) -> None:
    by_name = {name: DEMO.stages.get(name, DEMO.stages["anneal"]) for name in stages}
    changed = replace(DEMO, stages=by_name)
    with pytest.raises(ConfigError) as refused:
        compare(SAVED, changed)
    if frozen:
        assert refused.value.key == "stages"
        assert "a new one at the end" in refused.value.reason
    else:
        assert "resume.allow=[stages.late] " in refused.value.remedy
        (change,) = compare(SAVED, allowing("stages.late", config=changed))
        assert (change.key, change.old, change.new) == ("stages.late", None, SAVED["stages"]["anneal"])


def test_what_a_complete_training_stage_was_trained_with_stays() -> None:
    longer = compose(["experiment=demo", "stages.pretrain.tokens=999", "resume.allow=[stages.pretrain.tokens]"])
    saved = to_plain(PLAIN_DEMO)
    assert len(compare(saved, longer)) == 1
    with pytest.raises(ConfigError, match="is complete") as refused:
        compare(saved, longer, complete=["pretrain"])
    assert "a new training stage at the end (resume.allow=[stages.NAME])" in refused.value.remedy
    free = compose(["experiment=demo", "stages.pretrain.gate=null", "stages.pretrain.micro_batch_sequences=2"])
    assert len(compare(saved, free, complete=["pretrain"])) == 2


def test_what_a_later_version_adds_had_its_default_before() -> None:
    saved = copy.deepcopy(SAVED)
    for key in ("qk_norm", "prediction", "rope_theta"):
        del saved["model"][key]
    del saved["stages"]["pretrain"]["document_mask"]
    assert compare(saved, DEMO) == []
    with pytest.raises(ConfigError, match=r"model\.qk_norm=true: the earlier start had false"):
        compare(saved, compose(["experiment=demo", "model.qk_norm=true"]))


def test_keys_of_another_version_count_as_changes_and_their_remedy_works() -> None:
    saved = with_value(with_value(SAVED, "optimizer.momentum", 0.9), "colour", "red")
    saved["optimizer"] = without(saved["optimizer"], "lr")
    with pytest.raises(ConfigError) as refused:
        compare(saved, DEMO)
    assert (refused.value.key, refused.value.given) == ("optimizer.lr", str(DEMO.optimizer.lr))
    assert "had null" in refused.value.reason
    assert "resume.allow=[optimizer.lr,optimizer,*] " in refused.value.remedy
    allowed = compose(
        ["experiment=demo", "+deepspeed.extra.comms_logger={enabled: true}", "resume.allow=[optimizer,'*']"]
    )
    assert [(change.key, change.old, change.new) for change in compare(saved, allowed)] == [
        ("optimizer.lr", None, DEMO.optimizer.lr),
        ("optimizer.momentum", 0.9, None),
        ("colour", "red", None),
    ]


@pytest.mark.parametrize("damage", [{}, {"stages": None}, {"stages": [1]}, {"model": "tiny"}])
def test_a_saved_config_that_is_none_is_refused_not_crashed_on(damage: dict[str, Any]) -> None:
    saved = {**SAVED, **damage} if damage else {}
    with pytest.raises(ConfigError):
        compare(saved, allowing("*"))


def test_the_order_of_a_mixture_counts_as_it_does_in_the_hash() -> None:
    saved = copy.deepcopy(SAVED)
    saved["stages"]["anneal"]["mixture"] = dict(reversed(saved["stages"]["anneal"]["mixture"].items()))
    assert config_hash(to_run_config(saved)) != config_hash(DEMO)
    (change,) = compare(saved, allowing("stages.anneal.mixture"))
    assert (change.old, change.new) == (["python", "kjv"], ["kjv", "python"])
