"""What suites may ask of benchmarks, and what has to lie prepared before a run starts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from eval.benchmarks.registry import task_file
from launch import check
from training.config.benchmark_checks import check_benchmarks, check_prepared
from training.config.benchmarks import BENCHMARKS, BenchmarkKind, metrics_of
from training.config.eval_schema import BenchmarkConfig, SuiteConfig
from training.config.load import compose
from training.errors import ConfigError, DataError, ExitCode

NEEDLE = "+eval.suites.quick.benchmarks={needle: {items: 2}}"


@pytest.mark.parametrize(
    ("benchmarks", "words"),
    [
        ({"needles": BenchmarkConfig()}, ["needles", "needle"]),
        ({"cissp": BenchmarkConfig(tries=4, temperature=0.5)}, ["benchmarks.cissp.tries=4", "human_eval"]),
        ({"human_eval": BenchmarkConfig(tries=4)}, ["at temperature 0", "temperature=0.8"]),
        ({"bfcl_simple": BenchmarkConfig(max_new_tokens=8192)}, ["max_new_tokens=8192", "no room is left"]),
        ({"needle": BenchmarkConfig(compact=True)}, ["needle.compact=true", "bfcl_simple"]),
        ({"bfcl_simple": BenchmarkConfig(held_out_fraction=20.0)}, ["held_out_fraction=20", "at most 1"]),
        ({"bfcl_multi_turn": BenchmarkConfig(few_shot=2)}, ["few_shot=2", "leave few_shot out"]),
    ],
)
def test_what_cannot_be_asked_is_refused(benchmarks: dict[str, BenchmarkConfig], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_benchmarks("eval.suites.mine", SuiteConfig(benchmarks=benchmarks), max_length=8192)
    assert all(word in str(refusal.value) for word in words)


def test_the_longest_answers_are_those_of_the_tasks() -> None:
    for name, benchmark in BENCHMARKS.items():
        path = task_file(name)
        if path is not None and benchmark.kind in (BenchmarkKind.generation, BenchmarkKind.program):
            options = load_yaml(path, resolve_func=False)["generation_kwargs"]
            assert options["max_gen_toks"] == benchmark.answer_tokens, name
        elif benchmark.kind is not BenchmarkKind.workflow:
            assert benchmark.answer_tokens is None


def test_tries_give_a_metric_each() -> None:
    assert metrics_of("human_eval", 3) == ["human_eval/pass_at_1", "human_eval/pass_hat_2", "human_eval/pass_hat_3"]
    assert metrics_of("bits_per_byte_code", 1) == ["bits_per_byte_code/bits_per_byte"]
    assert metrics_of("cissp", 1) == ["cissp/acc"]
    assert metrics_of("bfcl_simple", 1) == ["bfcl_simple/acc", "bfcl_simple/parsed"]


def test_a_run_whose_benchmark_is_not_prepared_is_refused_before_it_starts(
    tmp_path: Path, prepared_benchmarks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=demo", NEEDLE, f"data.prepared_root={tmp_path}"]
    assert check.main(words) == ExitCode.DATA
    assert f"python -m eval.prepare needle --root {tmp_path}" in capsys.readouterr().err
    shutil.copytree(prepared_benchmarks / "benchmarks" / "needle", tmp_path / "benchmarks" / "needle")
    assert check.main(words) == ExitCode.DONE
    items = tmp_path / "benchmarks" / "needle" / "items.jsonl"
    items.write_text(items.read_text().replace("1", "2", 1))
    with pytest.raises(DataError, match="was changed"):
        check_prepared(compose(words))


def test_suites_that_no_training_stage_uses_need_not_be_prepared(tmp_path: Path) -> None:
    config = compose(["experiment=demo", "eval=benchmarks"])
    check_prepared(replace(config, data=replace(config.data, prepared_root=str(tmp_path))))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["eval.suites.quick.held_out_source=null"], "pretrain.eval_suite"),
        (
            ["stages.pretrain.eval_suite=null", "stages.pretrain.gate=null", "+stages.pretrain.eval_every_steps=5"],
            "pretrain.eval_every_steps",
        ),
        (["stages.pretrain.gate.conditions.quality.metric=cissp/acc"], "pretrain.gate.conditions.quality.metric"),
    ],
)
def test_suites_of_training_stages_that_cannot_be(words: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose(["experiment=demo", *words])
    assert refusal.value.key == f"stages.{key}"


TALKS = "+data.sources.talks={kind: json, form: conversations, path: talks.jsonl}"
MEASURED = ["eval.suites.quick.conversation_source=talks", "eval.suites.quick.held_out_conversations=5"]
ONLY_TALKS = "eval.suites.quick.held_out_source=null"
NO_QUESTIONS = "eval.suites.quick.multiple_choice_items=0"


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["eval.suites.quick.conversation_source=talk"], "conversation_source=talk"),
        (["eval.suites.quick.conversation_source=kjv"], "conversation_source=talks"),
        (MEASURED[:1], "held_out_conversations=0"),
    ],
)
def test_conversations_that_cannot_be_measured_are_refused(words: list[str], given: str) -> None:
    with pytest.raises(ConfigError, match=given):
        compose(["experiment=demo", TALKS, *words])


def test_a_gate_may_ask_for_the_loss_on_held_out_conversations() -> None:
    quality = "stages.pretrain.gate.conditions.quality"
    words = [TALKS, *MEASURED, ONLY_TALKS, NO_QUESTIONS, "stages.anneal.gate=null"]
    words = ["experiment=demo", *words, f"{quality}.metric=assistant_nats_per_token"]
    config = compose(words)
    assert config.stages["pretrain"].gate is not None
    with pytest.raises(ConfigError, match="is better when lower"):
        compose([*words, f"{quality}.at_most=null", f"{quality}.at_least=2.5"])


def test_a_gate_may_ask_for_a_benchmark_that_its_suite_runs() -> None:
    metric = "stages.pretrain.gate.conditions.quality.metric=needle/acc"
    words = [NEEDLE, metric, "stages.pretrain.gate.conditions.quality.at_most=null"]
    config = compose(["experiment=demo", *words, "stages.pretrain.gate.conditions.quality.at_least=0.5"])
    assert config.stages["pretrain"].gate is not None
