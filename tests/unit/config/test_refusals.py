"""Impossible configs are refused with the key, the reason and a remedy that works."""

import pytest

from tests.real_weights import SMOLLM2
from training.config.load import compose
from training.errors import ConfigError

DEMO = "experiment=demo"
BATCH = "stages.pretrain.global_batch_sequences"
GATE = "stages.pretrain.gate"
QUALITY = f"{GATE}.conditions.quality"
TO_START = "{metric: bits_per_byte, compared_with: start}"
QUESTIONS = "{metric: multiple_choice_accuracy, at_least: 0.3}"
SUITE = "eval.suites.quick"
RECOVERY = "fault_tolerance.recovery"
CORRUPTION = "fault_tolerance.corruption"
PIPELINE_OF_DEEPSPEED = ["parallel=pipeline", "cluster.processes_per_node=2"]
LAYOUT = "stages.pretrain.parallel"
EXPERTS = "model.experts"
MOE = ["model=tiny_moe"]
LATENT = "{kv_rank: 64, head_size: 24, rope_head_size: 8, value_head_size: 32}"
LATENT_MODEL = ["model.num_kv_heads=8", f"model.latent_attention={LATENT}"]
LLAMA3 = "{factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_sequence_length: 256}"
YARN = "{factor: 8.0, original_max_sequence_length: 64}"

# overrides; key at fault; a piece of the reason; a piece of the remedy
REFUSED = [
    # keys and groups
    (["optimzer.lr=1"], "optimzer.lr", "no such key", "did you mean optimizer.lr?"),
    (["lr=1"], "lr", "no such key", "optimizer.lr"),
    (["experimnt=demo"], "experimnt", "no such key", "experiment"),
    (["+optimizer.colour=0.9"], "optimizer.colour", "no such key", "optimizer has: "),
    (["optimizer={lrr: 1}"], "optimizer.lrr", "no such key", "optimizer.lr"),
    (["model=tinny"], "model", "no conf/model/tinny.yaml", "model=tiny"),
    (["experiment=dmo"], "experiment", "no conf/experiment/dmo.yaml", "experiment=demo"),
    (["model=null"], "model", "one file", "tiny"),
    (["experiment=[demo,smoke]"], "experiment", "one file", "smoke"),
    ([DEMO, "parallel@stages.pretrains.parallel=zero1"], "parallel@stages.pretrains.parallel", "no group", LAYOUT),
    (["parallel@stages.pretrain.parallel=zero1"], f"parallel@{LAYOUT}", "no group", f"+parallel@{LAYOUT}=zero1"),
    (["stages.pretran.lr=1"], "stages.pretran.lr", "no such entry", "stages.pretrain.lr"),
    (["stages.pretrain.mixture.web=1"], "stages.pretrain.mixture.web", "no such entry", "+stages.pretrain.mixture.web"),
    (["deepspeed.extra.foo=1"], "deepspeed.extra.foo", "no such entry", "+deepspeed.extra.foo=1"),
    (["hydra.run.dir=x"], "hydra.run.dir", "only composes", "run.root"),
    (["optimizer.lr"], "optimizer.lr", "not of the form key=value", "optimizer.lr=VALUE"),
    (["run.name=a=b"], "run.name", "not of the form key=value", "quote"),
    (["optimizer.lr=1,2"], "optimizer.lr", "sweep", "-m"),
    (["~optimizer.lr"], "~optimizer.lr", "only an entry of a dictionary", "null"),
    (["~model"], "model", "has no value", "model="),
    (["+stages.late.tokens=1000"], "stages.late.mixture", "has no value", "stages.late.mixture="),
    ([DEMO, "parallel=zero1"], "parallel", "would be ignored", "parallel@stages.pretrain.parallel"),
    ([DEMO, "schedule.warmup_fraction=0.5"], "schedule.warmup_fraction", "would be ignored", "stages.anneal.schedule"),
    (["run.name=${run.nothing}"], "run.name", "nothing", "write the value itself"),
    # types
    (["run.seed=1e9"], "run.seed", "whole number", "run.seed=1_000_000_000"),
    (["run.seed=2.0"], "run.seed", "whole number", "run.seed=2"),
    (["run.seed=2.7"], "run.seed", "whole number", "run.seed=3"),
    (["run.seed=true"], "run.seed", "whole number", "whole number"),
    (["optimizer.lr=fast"], "optimizer.lr", "a number", "give a number"),
    (["optimizer.lr='1e-3'"], "optimizer.lr", "a number", "optimizer.lr=0.001"),
    (["optimizer.lr=null"], "optimizer.lr", "a number", "give a number"),
    (["optimizer.lr=nan"], "optimizer.lr", "not a finite number", "optimizer.lr=0.001"),
    (["optimizer.lr=inf"], "optimizer.lr", "not a finite number", "optimizer.lr=0.001"),
    (["precision=fp16"], "precision", "fp32, bf16", "precision=bf16"),
    (["resume=atuo"], "resume.mode", "never, auto, must", "resume.mode=auto"),
    (["resume=null"], "resume.mode", "never, auto, must", "resume.mode=never"),
    (["resume.allow=optimizer.lr"], "resume.allow", "a list", "list"),
    (["resume.allow=[optimizer.lrr]"], "resume.allow", "no key matches", "resume.allow=[optimizer.lr]"),
    (["resume.allow=[lr]"], "resume.allow", "no key matches", "resume.allow=[optimizer.lr]"),
    (["resume.allow=[stages.pretran.tokens]"], "resume.allow", "no key", "resume.allow=[stages.pretrain.tokens]"),
    (["resume.allow=[stages.*.tokns]"], "resume.allow", "no key matches", "resume.allow=[stages.*.tokens]"),
    (["resume.allow=[optimzer.*]"], "resume.allow", "no key matches", "resume.allow=[optimizer]"),
    (["resume.allow=['']"], "resume.allow", "no key matches", "conf/README.md"),
    (["resume.allow=[precision,xyzzy.*]"], "resume.allow", "no key matches", "conf/README.md"),
    (["model.tied_embeddings=yes_please"], "model.tied_embeddings", "true or false", "true or false"),
    ([f"{SUITE}.prompts=hello"], f"{SUITE}.prompts", "a list", "list"),
    (["stages.pretrain.gate=3"], "stages.pretrain.gate", "section", "section"),
    # ranges and names
    (["optimizer.lr=0"], "optimizer.lr", "above 0", "optimizer.lr=0.001"),
    (["optimizer.lr=-2e-4"], "optimizer.lr", "above 0", "optimizer.lr=0.0002"),
    (["optimizer.beta2=1.0"], "optimizer.beta2", "below 1", "optimizer.beta2=0.95"),
    (["checkpoint.every_steps=0"], "checkpoint.every_steps", "at least 1", "checkpoint.every_steps=1"),
    (["checkpoint.permanent_every_steps=0"], "checkpoint.permanent_every_steps", "at least 1", "steps=1"),
    (["checkpoint.permanent_every_steps=120"], "checkpoint.permanent_every_steps", "every_steps=50", "steps=100 works"),
    (["checkpoint.permanent_every_steps=130"], "checkpoint.permanent_every_steps", "no multiple", "steps=150 works"),
    (["checkpoint.permanent_every_steps=3"], "checkpoint.permanent_every_steps", "never saved", "steps=50 works"),
    (["checkpoint.commit_timeout_seconds=0"], "checkpoint.commit_timeout_seconds", "at least 1", "seconds=1"),
    (["checkpoint.max_stall_seconds=-1"], "checkpoint.max_stall_seconds", "at least 0", "max_stall_seconds=0.0"),
    (["checkpoint.max_failed_saves=0"], "checkpoint.max_failed_saves", "at least 1", "saves=1"),
    (["checkpoint.asynchronous=maybe"], "checkpoint.asynchronous", "true or false", "true or false"),
    (["checkpoint.fast_root=runs/fast"], "checkpoint.fast_root", "run.root", "fast_root=null"),
    (["run.root=/r", "checkpoint.fast_root=/r"], "checkpoint.fast_root", "run.root=/r", "outside run.root"),
    (["checkpoint.keep_last=0"], "checkpoint.keep_last", "at least 1", "checkpoint.keep_last=1"),
    ([f"data.tokenizer={SMOLLM2}"], "model.vocab_size", "the tokenizer has 49152 tokens", "vocab_size=49152 works"),
    (["data.tokenizer_vocab_size=100"], "data.tokenizer_vocab_size", "at least 257", "data.tokenizer_vocab_size=257"),
    (["data.held_out_fraction=1"], "data.held_out_fraction", "below 1", "data.held_out_fraction=0.05"),
    (["schedule.warmup_fraction=1.2"], "schedule.warmup_fraction", "between 0.0 and 1.0", "warmup_fraction=1.0"),
    (["stages.pretrain.mixture.kjv=-1"], "stages.pretrain.mixture.kjv", "above 0", "mixture.kjv=1"),
    (["stages.pretrain.tokens=0"], "stages.pretrain.tokens", "at least 1", "stages.pretrain.tokens=1"),
    (["cluster.master_port=70000"], "cluster.master_port", "65535", "cluster.master_port=65535"),
    (["run.name=../../etc"], "run.name", "part of a path", "run.name=etc"),
    (["run.id=a/b"], "run.id", "part of a path", "run.id=a-b"),
    (["+stages.run=${stages.pretrain}"], "stages", "metrics.jsonl", "run_1"),
    (["+stages.start=${stages.pretrain}"], "stages", "before the first step", "start_1"),
    (["+stages.Long_Context=${stages.pretrain}"], "stages", "small letters", "long_context"),
    (["~stages.pretrain"], "stages", "at least one training stage", "stages=single"),
    # model
    (["model.num_kv_heads=3"], "model.num_kv_heads", "8 query heads", "model.num_kv_heads=4"),
    (["model.hidden_size=250"], "model.hidden_size", "even", "model.hidden_size=256"),
    (["model.hidden_size=264"], "model.hidden_size", "even", "model.hidden_size=256"),
    (["model.head_size=31"], "model.head_size", "even", "model.head_size=32"),
    (["model.head_size=0"], "model.head_size", "at least 1", "model.head_size=1"),
    ([f"model.latent_attention={LATENT}"], "model.num_kv_heads", "each query head", "model.num_kv_heads=8"),
    ([*LATENT_MODEL, "model.head_size=32"], "model.head_size", "ignored", "model.head_size=null"),
    ([*LATENT_MODEL, "model.qk_norm=true"], "model.qk_norm", "ignored", "model.qk_norm=false"),
    ([*LATENT_MODEL, "model.latent_attention.kv_rank=0"], "model.latent_attention.kv_rank", "at least 1", "kv_rank=1"),
    (
        [*LATENT_MODEL, "model.latent_attention.rope_head_size=9"],
        "model.latent_attention.rope_head_size",
        "turn pairs",
        "model.latent_attention.rope_head_size=10",
    ),
    (
        [f"model.rope_scaling={LLAMA3}", f"model.yarn={YARN}"],
        "model.yarn",
        "model.rope_scaling scales the same",
        "model.rope_scaling=null",
    ),
    ([f"model.yarn={YARN}", "model.yarn.factor=0.5"], "model.yarn.factor", "at least 1.0", "model.yarn.factor=1.0"),
    (
        [f"model.yarn={YARN}", "model.yarn.beta_slow=40.0"],
        "model.yarn.beta_slow",
        "below beta_fast=32",
        "beta_slow=1.0",
    ),
    (
        [f"model.yarn={YARN}", "model.yarn.original_max_sequence_length=6"],
        "model.yarn.original_max_sequence_length",
        "no pair turns beta_slow=1.0 times",
        "model.yarn.original_max_sequence_length=7",
    ),
    ([f"model.yarn={YARN}", "model.rope_theta=1.0"], "model.rope_theta", "powers", "model.rope_theta=10000"),
    ([*MOE, f"{EXPERTS}.num_experts=1"], f"{EXPERTS}.num_experts", "at least 2", "num_experts=2"),
    ([*MOE, f"{EXPERTS}.experts_per_token=9"], f"{EXPERTS}.experts_per_token", "8 experts", "experts_per_token=8"),
    ([*MOE, f"{EXPERTS}.num_dense_layers=4"], f"{EXPERTS}.num_dense_layers", "4 blocks", "num_dense_layers=3"),
    ([*MOE, f"{EXPERTS}.num_groups=3"], f"{EXPERTS}.num_groups", "8 experts cannot", "num_groups=4 works (1, 2, 4 do)"),
    ([*MOE, f"{EXPERTS}.num_groups=8"], f"{EXPERTS}.num_groups", "two or more", "num_groups=4 works"),
    (
        [*MOE, f"{EXPERTS}.num_groups=2", f"{EXPERTS}.groups_per_token=3"],
        f"{EXPERTS}.groups_per_token",
        "num_groups=2",
        f"{EXPERTS}.groups_per_token=2 is the most",
    ),
    (
        [*MOE, f"{EXPERTS}.num_groups=4", f"{EXPERTS}.experts_per_token=3"],
        f"{EXPERTS}.groups_per_token",
        "so few groups of 2",
        f"{EXPERTS}.groups_per_token=2 is the least, or {EXPERTS}.experts_per_token=2",
    ),
    ([*MOE, f"{EXPERTS}.capacity_factor=0.0"], f"{EXPERTS}.capacity_factor", "above 0", "capacity_factor=1.25"),
    ([*MOE, f"{EXPERTS}.bias_update_rate=-0.1"], f"{EXPERTS}.bias_update_rate", "at least 0", "bias_update_rate=0.1"),
    ([*MOE, f"{EXPERTS}.balance_loss=-0.1"], f"{EXPERTS}.balance_loss", "at least 0", "balance_loss=0.1"),
    ([*MOE, f"{EXPERTS}.z_loss=nan"], f"{EXPERTS}.z_loss", "not a finite number", "z_loss=0.001"),
    ([*MOE, f"{EXPERTS}.weight_scale=0.0"], f"{EXPERTS}.weight_scale", "above 0", "weight_scale=1.0"),
    ([*MOE, f"{EXPERTS}.score=tanh"], f"{EXPERTS}.score", "softmax, sigmoid", "softmax"),
    (["model.vocab_size=1000"], "model.vocab_size", "4096 tokens", "model.vocab_size=4096"),
    (["stages.pretrain.sequence_length=1024"], "stages.pretrain.sequence_length", "512", "sequence_length=512"),
    ([f"{SUITE}.document_tokens=512"], f"{SUITE}.document_tokens", "512", f"{SUITE}.document_tokens=511"),
    # layout and batch
    (["parallel=pipeline"], "parallel.pipeline", "1 rank cannot", "cluster.processes_per_node=2"),
    (["parallel.pipeline=3", "cluster.processes_per_node=4"], "parallel.pipeline", "4 ranks", "parallel.pipeline=4"),
    (["parallel.pipeline=8", "cluster.processes_per_node=8"], "parallel.pipeline", "4 blocks", "parallel.pipeline=4"),
    (["parallel.zero_stage=4"], "parallel.zero_stage", "between 0 and 3", "parallel.zero_stage=3"),
    (
        [DEMO, "parallel@stages.anneal.parallel=pipeline", "stages.anneal.parallel.zero_stage=3"],
        "stages.anneal.parallel.zero_stage",
        "DeepSpeed's PipelineEngine refuses",
        "pipeline_engine=autarky",
    ),
    (
        [DEMO, "stages.anneal.parallel.zero_stage=0"],
        "stages.anneal.parallel.zero_stage",
        "1, 2 or 3",
        "zero_stage=1",
    ),
    (["parallel.schedule=zero_bubble"], "parallel.schedule", "one of 1f1b, interleaved", "parallel.schedule=1f1b"),
    (["model.dropout=1"], "model.dropout", "at least 0 and below 1", "model.dropout=0.1"),
    (["precision=bf16", "parallel=single"], "parallel.zero_stage", "without ZeRO", "parallel.zero_stage=1"),
    ([f"{BATCH}=18"], BATCH, "no multiple of micro_batch_sequences=4", f"{BATCH}=16"),
    ([f"{BATCH}=18"], BATCH, "no multiple", "micro_batch_sequences=3"),
    ([f"{BATCH}=2"], BATCH, "= 4", f"{BATCH}=4"),
    ([DEMO, f"+{LAYOUT}.layers_per_pipeline_stage=[2,2]"], f"{LAYOUT}.layers_per_pipeline_stage", "1 numbers", "=[4]"),
    (
        [DEMO, "stages.anneal.parallel.layers_per_pipeline_stage=[4,0]"],
        "stages.anneal.parallel.layers_per_pipeline_stage",
        "each at least 1",
        "=[2,2]",
    ),
    # references
    (["+stages.pretrain.mixture.kjw=1"], "stages.pretrain.mixture", "data.sources has no kjw", "kjv"),
    (["stages.pretrain.eval_suite=quik"], "stages.pretrain.eval_suite", "eval.suites has no quik", "quick"),
    ([f"{SUITE}.held_out_source=bible"], f"{SUITE}.held_out_source", "data.sources has no bible", "kjv, python"),
    (["+data.sources.web.kind=text_files"], "data.sources.web.path", "which", "data.sources.web.path="),
    (["data.sources.kjv.path=/x"], "data.sources.kjv.path", "ignore the path", "kind=text_files"),
    (
        [DEMO, "stages.anneal.eval_suite=null"],
        "stages.anneal.gate",
        "needs an evaluation",
        "stages.anneal.eval_suite=quick",
    ),
    (
        [
            DEMO,
            f"+{GATE}.conditions.to_start={TO_START}",
            "eval.at_start=false",
        ],
        f"{GATE}.conditions.to_start.compared_with",
        "no such evaluation before",
        "eval.at_start=true",
    ),
    (
        [DEMO, "+eval.suites.other=${eval.suites.quick}", "stages.anneal.eval_suite=other"],
        "stages.anneal.gate.conditions.no_worse.compared_with",
        "not the same measure",
        "same eval_suite",
    ),
    (
        [DEMO, "stages.anneal.gate.conditions.no_worse.compared_with=pretran"],
        "stages.anneal.gate.conditions.no_worse.compared_with",
        "no pretran",
        "pretrain",
    ),
    (
        [DEMO, f"{QUALITY}.metric=bits_per_bite"],
        f"{QUALITY}.metric",
        "one of",
        "bits_per_byte",
    ),
    ([DEMO, f"{QUALITY}.at_most=null"], QUALITY, "exactly one of", "keep one"),
    ([DEMO, f"{QUALITY}.at_least=1"], QUALITY, "exactly one of", "keep at_most"),
    (
        [DEMO, f"{QUALITY}.at_most=null", f"{QUALITY}.at_least=1"],
        f"{QUALITY}.at_least",
        "better when lower",
        "at_most=1",
    ),
    (
        [DEMO, f"{QUALITY}.margin=0.1"],
        f"{QUALITY}.margin",
        "nothing that it could be",
        "at_most",
    ),
    (
        [
            DEMO,
            f"+{GATE}.conditions.mc={QUESTIONS}",
            f"{SUITE}.multiple_choice_items=0",
        ],
        f"{GATE}.conditions.mc.metric",
        "asks no multiple-choice",
        "multiple_choice_items=",
    ),
    ([DEMO, f"{GATE}.pass_if=[[qualty]]"], f"{GATE}.pass_if", "no qualty", "quality"),
    ([DEMO, f"{GATE}.pass_if=[[]]"], f"{GATE}.pass_if", "always met", "gate=null"),
    ([DEMO, f"{GATE}.when_missed=more_items"], f"{GATE}.when_missed", "does not do that", "block or ask"),
    ([DEMO, f"{GATE}.when_unclear=more_items"], f"{GATE}.max_looks", "more than one look", "max_looks=3"),
    ([DEMO, f"{GATE}.max_looks=3"], f"{GATE}.max_looks", "more than one look", "more_items"),
    ([DEMO, f"{GATE}.confidence=1"], f"{GATE}.confidence", "below 1", "confidence=0.95"),
    (["schedule.decay_fraction=0.1"], "schedule.decay_fraction", "only wsd", "schedule.kind=wsd"),
    (
        ["schedule=wsd", "schedule.warmup_fraction=0.6", "schedule.decay_fraction=0.5"],
        "schedule.decay_fraction",
        "more than the whole",
        "schedule.decay_fraction=0.4",
    ),
    # spikes and corruption
    (["fault_tolerance.recovery.on_loss_spike=undo"], f"{RECOVERY}.on_loss_spike", "rollback", "on_loss_spike="),
    ([f"{RECOVERY}.min_steps=200"], f"{RECOVERY}.min_steps", "128 steps", f"{RECOVERY}.min_steps=128"),
    ([f"{RECOVERY}.threshold_sigmas=0"], f"{RECOVERY}.threshold_sigmas", "above 0", "threshold_sigmas=6"),
    ([f"{RECOVERY}.patience_steps=0"], f"{RECOVERY}.patience_steps", "at least 1", "patience_steps=1"),
    ([f"{CORRUPTION}.rerun_every_steps=0"], f"{CORRUPTION}.rerun_every_steps", "at least 1", "rerun_every_steps=1"),
    (
        [f"{RECOVERY}.on_loss_spike=rollback", f"{RECOVERY}.rewind_steps=200"],
        "checkpoint.keep_last",
        "200 steps after",
        "checkpoint.keep_last=5",
    ),
    (
        [*PIPELINE_OF_DEEPSPEED, f"{RECOVERY}.on_loss_spike=skip"],
        f"{RECOVERY}.on_loss_spike",
        "between backward and update",
        "pipeline_engine=autarky can, or fault_tolerance.recovery.on_loss_spike=rollback",
    ),
    (
        [*PIPELINE_OF_DEEPSPEED, f"{CORRUPTION}.rerun_every_steps=100"],
        f"{CORRUPTION}.rerun_every_steps",
        "in one call",
        "rerun_every_steps=null",
    ),
    (
        [*PIPELINE_OF_DEEPSPEED, f"{CORRUPTION}.at_rest_every_steps=100"],
        f"{CORRUPTION}.at_rest_every_steps",
        "in one call",
        "pipeline_engine=autarky",
    ),
    # DeepSpeed
    (
        ["+deepspeed.extra.train_batch_size=8"],
        "deepspeed.extra.train_batch_size",
        "two sources",
        "stages.*.global_batch_sequences",
    ),
    (
        ["+deepspeed.extra.grandient_accumulation_steps=1"],
        "deepspeed.extra.grandient_accumulation_steps",
        "gradient_accumulation_steps",
        "leave it out",
    ),
    # fault tolerance
    (["fault_tolerance.hang.step_seconds=0"], "fault_tolerance.hang.step_seconds", "at least 1", "step_seconds=1.0"),
    (["fault_tolerance.stragglers.ratio=1"], "fault_tolerance.stragglers.ratio", "at least 1.05", "ratio=1.05"),
    (
        ["fault_tolerance.stragglers.slow_windows=5"],
        "fault_tolerance.stragglers.slow_windows",
        "of_windows=4",
        "slow_windows=4 works",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "reason", "remedy"), REFUSED, ids=lambda value: str(value)[:60])
def test_an_impossible_config_is_refused_with_key_reason_and_remedy(
    overrides: list[str], key: str, reason: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    error = caught.value
    assert error.key == key
    assert reason in error.reason
    assert remedy in error.remedy
    assert str(error).startswith(f"{key}=")


def test_a_refusal_says_given_value_reason_and_remedy_in_two_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["model.num_kv_heads=3"])
    first, second = str(caught.value).splitlines()
    assert first == "model.num_kv_heads=3: 8 query heads cannot share 3 key/value heads evenly"
    assert second == "  -> model.num_kv_heads=4 works (divisors of 8: 1, 2, 4, 8)"
