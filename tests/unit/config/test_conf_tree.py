"""Every file under conf/ composes, experiments equal their golden files, the README equals the schema."""

from pathlib import Path

import pytest
import yaml

from tests.golden.rewrite import FIXED_PATHS, GOLDEN, PLANNED_ONLY, golden_files
from training.config import docs
from training.config.checks import DERIVED_KEYS
from training.config.deepspeed_config import deepspeed_config
from training.config.load import compose
from training.config.overrides import CONF_DIRECTORY, group_choices, group_names
from training.config.schema import Precision, Recompute, RunConfig, ScheduleKind

CHOICES = [(group, choice) for group in group_names() if group != "hydra" for choice in group_choices(group)]
GOLDEN_FILES = golden_files()
EIGHT_RANKS = ["cluster.processes_per_node=8", "stages.pretrain.global_batch_sequences=32"]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_of_every_group_composes_to_a_checked_config(group: str, choice: str, tmp_path: Path) -> None:
    fitting = ["cluster.processes_per_node=2"]
    if group == "cluster" and choice not in ("local", "slurm"):
        fitting = [*EIGHT_RANKS, "cluster.num_nodes=1"]
    if (group, choice) == ("cluster", "hostfile"):
        hosts = tmp_path / "hosts"
        hosts.write_text("node1 slots=2\n")
        fitting = [f"cluster.hostfile.path={hosts}"]
    if group == "experiment":
        fitting = []
    if (group, choice) in {("data", "corpora"), ("stages", "pretrain")}:
        fitting += ["data=corpora", "stages=pretrain", "model=llama3_8b", "eval.suites.quick.held_out_source=web"]
    if choice == "documents":
        fitting += ["data=documents", "stages=documents", "model=smollm2_135m"]
        fitting += ["eval.suites.quick.held_out_source=python"]
    if (group, choice) in {("data", "workflow_calls"), ("eval", "calls"), ("stages", "sft_preference")}:
        fitting += ["data=workflow_calls", "eval=calls", "stages=sft_preference", "model=smollm2_135m"]
    if (group, choice) == ("optimizer", "muon"):
        fitting += ["parallel=zero3"]
    if choice == "pipeline_sequence_expert":
        fitting = ["model=mai1_500b", "cluster.processes_per_node=120"]
    has_experts = group == "model" and "experts:" in (CONF_DIRECTORY / "model" / f"{choice}.yaml").read_text()
    only_planned = choice in {*PLANNED_ONLY, "pipeline_sequence_expert"} or has_experts
    assert isinstance(compose([f"{group}={choice}", *fitting, "run.root=/r"], to_plan=only_planned), RunConfig)


@pytest.mark.parametrize("path", sorted(GOLDEN_FILES), ids=lambda path: path.name)
def test_an_experiment_equals_its_golden_file(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == GOLDEN_FILES[path], "review, then: python -m tests.golden.rewrite"


def test_no_golden_file_is_left_over_from_a_removed_experiment() -> None:
    held = {path for folder in ("config", "deepspeed", "slurm") for path in (GOLDEN / folder).iterdir()}
    assert held == set(GOLDEN_FILES)


def test_the_readme_of_conf_is_generated_from_the_schema() -> None:
    for path, content in docs.generated().items():
        assert path.read_text(encoding="utf-8") == content, "make golden"


def test_every_key_of_the_schema_says_what_it_means() -> None:
    rows = [line.split(" | ") for line in docs.text().splitlines() if line.startswith("| `") and line.count(" | ") >= 3]
    assert len(rows) > 80
    assert all(row[3].strip(" |") for row in rows)


def test_self_stands_before_experiment_and_debug_so_that_their_values_win() -> None:
    defaults = yaml.safe_load((CONF_DIRECTORY / "config.yaml").read_text())["defaults"]
    assert defaults[0] == "_self_"
    assert [next(iter(entry)) for entry in defaults[-2:]] == ["experiment", "debug"]
    assert compose(["experiment=demo"]).run.name == "demo"


def test_no_yaml_file_names_python_code() -> None:
    assert not [path for path in CONF_DIRECTORY.rglob("*.yaml") if "_target_" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(("experiment", "precision"), [("demo", "fp32"), ("demo", "bf16"), ("demo_single", "fp32")])
def test_every_key_of_deepspeeds_dictionary_is_refused_as_an_extra(experiment: str, precision: str) -> None:
    config = compose([f"experiment={experiment}", f"precision={precision}", *FIXED_PATHS])
    derived = {key for name in config.stages for key in deepspeed_config(config, name)}
    assert derived <= set(DERIVED_KEYS)


def test_published_models_have_their_published_sizes() -> None:
    model = compose(["model=llama3_405b"]).model
    assert (model.hidden_size, model.num_layers, model.num_heads, model.ffn_size) == (16384, 126, 128, 53248)
    assert model.rope_scaling is not None
    assert (model.rope_scaling.factor, model.rope_scaling.original_max_sequence_length) == (8.0, 8192)
    small = compose(["model=smollm2_135m"]).model
    assert (small.num_heads, small.num_kv_heads, small.tied_embeddings) == (9, 3, True)


def test_a_training_stage_has_its_own_layout_and_schedule_as_group_choices() -> None:
    demo = compose(["experiment=demo"])
    assert [demo.layout_of(name).zero_stage for name in demo.stages] == [3, 3]
    assert [demo.layout_of(name).pipeline for name in demo.stages] == [1, 2]
    assert demo.schedule_of("anneal").decay_fraction == 1.0
    changed = compose(
        ["experiment=demo", "parallel@stages.pretrain.parallel=zero1", "schedule@stages.anneal.schedule=wsd"]
    )
    assert changed.layout_of("pretrain").zero_stage == 1
    assert changed.layout_of("anneal") == demo.layout_of("anneal")
    assert changed.schedule_of("anneal").kind is ScheduleKind.wsd


def test_the_demo_as_one_process_trains_on_the_same_samples() -> None:
    two, one = compose(["experiment=demo"]), compose(["experiment=demo_single"])
    assert one.world_size == 1
    assert {name: (s.mixture, s.tokens, s.global_batch_sequences) for name, s in one.stages.items()} == {
        name: (s.mixture, s.tokens, s.global_batch_sequences) for name, s in two.stages.items()
    }
    assert (one.model, one.data, one.optimizer) == (two.model, two.data, two.optimizer)


def test_enum_members_are_spelt_as_their_values() -> None:
    for kind in (Precision, Recompute, ScheduleKind):
        assert all(member.name == member.value for member in kind)
