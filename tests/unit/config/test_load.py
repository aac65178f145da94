"""Composing, order of overrides, numbers, paths, freezing and hashing."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from training.config.data_schema import SourceKind
from training.config.load import compose, config_hash, freeze, load_frozen, to_yaml, with_resume
from training.config.overrides import expand_sweep
from training.config.reporting_schema import WandbMode
from training.config.schema import Resume, ResumeConfig, RunConfig, StageConfig
from training.config.typed import to_run_config
from training.errors import ConfigError


@pytest.fixture(scope="module")
def demo() -> RunConfig:
    return compose(["experiment=demo"])


@pytest.mark.parametrize("spelling", ["1e-4", "1E-4", ".0001", "0.0001", "1.0e-4", "1_0e-5"])
def test_every_spelling_of_a_small_number_becomes_the_same_float(spelling: str) -> None:
    lr = compose([f"optimizer.lr={spelling}"]).optimizer.lr
    assert isinstance(lr, float)
    assert lr == 1e-4


def test_scientific_notation_in_a_yaml_file_becomes_a_float(demo: RunConfig) -> None:
    assert demo.optimizer.lr == 2e-3
    assert demo.optimizer.epsilon == 1e-8
    azure = compose(["cluster=azure_nd_h100_v5", "stages.pretrain.global_batch_sequences=32"]).cluster.accelerator
    assert (azure.peak_flops_per_second, azure.memory_bytes) == (989e12, 80e9)
    assert isinstance(azure.memory_bytes, float)


def test_a_whole_number_becomes_a_float_where_a_float_belongs() -> None:
    decay = compose(["optimizer.weight_decay=1"]).optimizer.weight_decay
    assert isinstance(decay, float)
    assert compose(["run.name=7"]).run.name == "7"


def test_the_last_override_wins_and_values_win_over_groups_wherever_they_stand() -> None:
    assert compose(["run.seed=1", "run.seed=2"]).run.seed == 2
    assert compose(["model.num_layers=2", "model=llama3_8b", "model.num_layers=3"]).model.num_layers == 3
    assert compose(["model.num_layers=2", "model=llama3_8b"]).model.num_layers == 2
    assert compose(["debug=every_step", "experiment=demo"]).checkpoint.every_steps == 1


def test_the_launchers_world_beats_yaml_and_an_override_beats_both() -> None:
    started = compose(["experiment=demo"], world=(2, 2))
    assert (started.cluster.num_nodes, started.cluster.processes_per_node) == (2, 2)
    said = compose(["experiment=demo", "cluster.processes_per_node=1"], world=(2, 2))
    assert (said.cluster.num_nodes, said.cluster.processes_per_node) == (2, 1)


def test_entries_of_dictionaries_are_added_with_plus_and_taken_out_with_tilde() -> None:
    config = compose(["experiment=demo", "~stages.anneal", "+data.sources.web={kind: text_files, path: /texts}"])
    assert list(config.stages) == ["pretrain"]
    assert config.data.sources["web"].kind is SourceKind.text_files
    assert compose(["+deepspeed.extra.comms_logger={enabled: true}"]).deepspeed.extra == {
        "comms_logger": {"enabled": True}
    }


def test_an_optional_section_that_was_null_takes_one_value() -> None:
    gate = compose(["stages.pretrain.gate.confidence=0.9", "stages.pretrain.eval_suite=quick"]).stages["pretrain"].gate
    assert gate is not None
    assert gate.conditions == {}
    assert gate.confidence == 0.9


def test_compose_works_from_any_directory_and_anchors_paths_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    web = "+data.sources.web={kind: text_files, path: texts/*.txt}"
    config = compose(["data.prepared_root=../shared", web, "checkpoint.fast_root=fast"])
    assert config.checkpoint.fast_root == str(tmp_path / "fast")
    assert config.run.root == str(tmp_path / "runs")
    assert config.data.prepared_root == str(tmp_path.parent / "shared")
    assert config.data.sources["web"].path == str(tmp_path / "texts/*.txt")
    assert config.data.sources["kjv"].path is None
    assert list(tmp_path.iterdir()) == [], "composing writes nothing"


def test_a_frozen_config_is_loaded_as_it_was(tmp_path: Path, demo: RunConfig) -> None:
    path = freeze(demo, tmp_path)
    assert path.name == "config.yaml"
    assert load_frozen(tmp_path) == demo
    assert config_hash(load_frozen(tmp_path)) == config_hash(demo)


SINGLE = compose([])


@given(
    text=st.text(max_size=40),
    lr=st.floats(min_value=1e-12, max_value=1e3),
    tokens=st.integers(min_value=1, max_value=10**15),
)
def test_any_text_and_number_survives_freezing(text: str, lr: float, tokens: int) -> None:
    stage = replace(SINGLE.stages["pretrain"], tokens=tokens, lr=lr)
    suite = replace(SINGLE.eval.suites["quick"], prompts=[text, "${run.name}", "no", "1e-3"])
    config = replace(SINGLE, stages={"pretrain": stage}, eval=replace(SINGLE.eval, suites={"quick": suite}))
    assert to_run_config(yaml.safe_load(to_yaml(config))) == config


def test_a_run_directory_without_a_config_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read config\.yaml(.|\n)*launch\.submit"):
        load_frozen(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["[1, 2]", "", "a: [", "run: 3"])
def test_a_damaged_frozen_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError):
        load_frozen(tmp_path)


def test_a_frozen_config_that_was_edited_into_nonsense_is_checked_again(tmp_path: Path, demo: RunConfig) -> None:
    text = to_yaml(demo)
    (tmp_path / "config.yaml").write_text(text.replace("num_kv_heads: 4", "num_kv_heads: 3"))
    with pytest.raises(ConfigError, match="num_kv_heads"):
        load_frozen(tmp_path)


FREE = [
    "run.id=other",
    "run.root=/elsewhere",
    "resume=auto",
    "resume.allow=[optimizer.lr]",
    "data.prepared_root=/elsewhere",
    "data.prepare=require",
    "checkpoint.every_steps=7",
    "fault_tolerance.max_consecutive_skips=9",
    "reporting.wandb.mode=disabled",
    "cluster.master_port=29511",
    "cluster.processes_per_node=4",
    "stages.pretrain.parallel.zero_stage=1",
    "stages.pretrain.micro_batch_sequences=2",
    "eval.at_start=false",
]
NUMBERS = [
    "run.seed=1",
    "optimizer.lr=1e-4",
    "model.norm_epsilon=1e-6",
    "stages.pretrain.tokens=1",
    "data.tokenizer_vocab_size=512",
    "eval.suites.quick.held_out_documents=3",
    "precision=bf16",
]


@pytest.mark.parametrize("override", FREE)
def test_the_hash_ignores_what_is_free_to_change(demo: RunConfig, override: str) -> None:
    assert config_hash(compose(["experiment=demo", override])) == config_hash(demo)


@pytest.mark.parametrize("override", NUMBERS)
def test_the_hash_sees_what_changes_a_number(demo: RunConfig, override: str) -> None:
    assert config_hash(compose(["experiment=demo", override])) != config_hash(demo)


def test_the_hash_sees_the_order_of_training_stages_and_has_12_hex_digits(demo: RunConfig) -> None:
    swapped: dict[str, StageConfig] = dict(reversed(demo.stages.items()))
    assert config_hash(replace(demo, stages=swapped)) != config_hash(demo)
    assert len(config_hash(demo)) == 12
    assert int(config_hash(demo), 16) >= 0


def test_the_hash_is_the_same_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: RunConfig
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_hash(compose(["experiment=demo"])) == config_hash(demo)


RESUME = [
    ("resume=auto", ResumeConfig(mode=Resume.auto)),
    ("resume.mode=must", ResumeConfig(mode=Resume.must)),
    ("resume.allow=[optimizer.lr,stages.*.tokens]", ResumeConfig(allow=["optimizer.lr", "stages.*.tokens"])),
    ("resume={mode: auto, allow: [model.dropout]}", ResumeConfig(mode=Resume.auto, allow=["model.dropout"])),
]


@pytest.mark.parametrize(("override", "expected"), RESUME)
def test_resume_is_a_section_with_a_short_form_also_beside_a_run_directory(
    demo: RunConfig, override: str, expected: ResumeConfig
) -> None:
    assert compose([override]).resume == expected
    assert with_resume(demo, [override]) == replace(demo, resume=expected)
    assert [compose(point).resume for point in expand_sweep([override])] == [expected]


def test_beside_a_run_directory_the_last_word_wins_and_the_rest_stays_frozen(demo: RunConfig) -> None:
    frozen = replace(demo, resume=ResumeConfig(mode=Resume.auto, allow=["precision"]))
    assert with_resume(frozen, []) == frozen
    assert with_resume(frozen, ["resume=never", "resume=must"]).resume == ResumeConfig(
        mode=Resume.must, allow=["precision"]
    )
    for word in ("optimizer.lr=1", "+optimizer.lr=1", "model=tiny", "~stages.anneal", "parallel@x=zero1"):
        with pytest.raises(ConfigError, match="is frozen"):
            with_resume(frozen, [word])


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("resume=atuo", "resume.mode=auto"),
        ("resume.mod=auto", "resume.mode"),
        ("resume.allow=[optimizer.lrr]", "resume.allow=\\[optimizer.lr\\]"),
        ("resume", "resume=VALUE"),
        ("resume=auto,must", "sweep"),
        ("~resume", "null"),
    ],
)
def test_a_mistyped_resume_beside_a_run_directory_is_refused_with_the_nearest(
    demo: RunConfig, word: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=remedy):
        with_resume(demo, [word])


def test_a_changed_gate_does_not_make_another_run(demo: RunConfig) -> None:
    loosened = compose(["experiment=demo", "stages.pretrain.gate.conditions.quality.at_most=2.9"])
    assert loosened.stages["pretrain"].gate != demo.stages["pretrain"].gate
    assert config_hash(loosened) == config_hash(demo)


def test_a_sweep_is_the_product_of_its_values_in_the_order_given() -> None:
    points = expand_sweep(["experiment=demo", "run.seed=1,2", "parallel@stages.pretrain.parallel=zero1,zero3"])
    assert points == [
        ["experiment=demo", f"run.seed={seed}", f"parallel@stages.pretrain.parallel={layout}"]
        for seed in (1, 2)
        for layout in ("zero1", "zero3")
    ]
    assert expand_sweep(["run.seed=range(1,4)"]) == [["run.seed=1"], ["run.seed=2"], ["run.seed=3"]]
    assert expand_sweep(["run.name='a,b'"]) == [["run.name='a,b'"]]
    assert [point[0] for point in expand_sweep(["optimizer.lr=1e-4,3e-4"])] == [
        "optimizer.lr=0.0001",
        "optimizer.lr=0.0003",
    ]


@pytest.mark.parametrize("override", ["optimizer.lr=interval(0,1)", "model=glob(*)"])
def test_a_sweep_without_a_list_of_values_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="list the values"):
        expand_sweep([override])


def test_wandb_modes_are_the_three_that_exist(demo: RunConfig) -> None:
    assert demo.reporting.wandb.mode is WandbMode.offline
    with pytest.raises(ConfigError, match="offline, online, disabled"):
        compose(["reporting.wandb.mode=of"])
