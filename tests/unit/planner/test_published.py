import csv
import json
from pathlib import Path
from typing import Any

import pytest

from training.errors import ConfigError
from training.planner.job import NumberFormat, Recompute
from training.planner.published import FRAMEWORKS, RUNS, job_of, read_rows, sweep_rows
from training.planner.published_hardware import DEVICES, device_named
from training.planner.published_memory import predicted_gib, published_gib
from training.planner.published_split import Use, runs_of, sweep_runs
from training.planner.software import SOFTWARE

ROW: dict[str, Any] = {
    "id": "one",
    "source": "a paper",
    "framework": "Megatron-Core",
    "gpu": "H100 SXM5 80GB",
    "precision": "bf16",
    "recompute": "none",
    "complete": True,
    "num_gpus": 64,
    "layers": 32,
    "hidden": 4096,
    "heads": 32,
    "kv_heads": 8,
    "ffn_hidden": 14336,
    "ffn_mats": 3,
    "vocab": 128256,
    "seq_len": 8192,
    "micro_batch": 1,
    "grad_accum": 16,
    "dp": 4,
    "tp": 2,
    "pp": 4,
    "cp": 2,
    "ep": 1,
    "vpp": 2,
    "zero_stage": 1,
    "step_time_s": 3.0,
}


def test_a_row_becomes_a_job() -> None:
    job = job_of(ROW)
    assert job.split.world_size == 64
    assert job.split.chunks_per_rank == 2
    assert job.split.tensor_shards_sequence
    assert job.model.head_size == 128
    assert job.network.cluster_bandwidth == 50e9
    assert job.software == "megatron"
    assert job_of(ROW | {"inter_node_gbps_per_gpu": 200}).network.cluster_bandwidth == 25e9
    assert job_of(ROW | {"pp": 1, "num_gpus": 16}).split.chunks_per_rank == 1


def test_strings_of_a_csv_are_understood_as_a_jsons_values_are() -> None:
    as_text = {key: "" if value is None else str(value) for key, value in ROW.items()}
    assert job_of(as_text) == job_of(ROW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "TPU v4"}, r"gpu=TPU v4: no such device(.|\n)*H100"),
        ({"framework": "MaxText"}, r"framework=MaxText: no profile(.|\n)*torchtitan"),
        ({"layers": None}, r"layers=\(blank\)"),
        ({"hidden": "wide"}, r"hidden=wide: not a number"),
        ({"recompute": ""}, r"recompute=\(blank\)"),
        ({"num_gpus": 128}, r"num_gpus=128: dp \* tp \* pp \* cp is 64"),
        ({"gpu": "A100 SXM4 80GB", "precision": "fp8"}, r"precision=fp8: A100 80GB has no such products"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job_of(ROW | change)


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("full (uniform, every layer)", Recompute.full),
        ("selective (op-level)", Recompute.selective),
        ("selective (core attention)", Recompute.attention),
        ("core_attn (fused attention)", Recompute.attention),
        ("none (yaml: activations_checkpoint_granularity null)", Recompute.none),
    ],
)
def test_recompute_in_words(told: str, meant: Recompute) -> None:
    assert job_of(ROW | {"recompute": told}).split.recompute is meant


@pytest.mark.parametrize(
    ("change", "profile"),
    [
        ({"framework": "torchtitan", "features": "FSDP"}, "torchtitan_eager"),
        ({"framework": "torchtitan", "features": "FSDP + torch.compile"}, "torchtitan_compile"),
        ({"framework": "torchtitan", "features": "async TP + compile"}, "torchtitan_async_tensor"),
        ({"framework": "Megatron-LM (2021)"}, "megatron_2021"),
        ({"framework": "Megatron-DeepSpeed"}, "deepspeed_megatron"),
        ({"framework": "Megatron-Bridge", "features": "HybridEP; EP overlap off"}, "megatron_hybrid_ep"),
        ({"framework": "nanotron", "pp": 1, "dp": 16}, "nanotron"),
        ({"framework": "nanotron", "pp": 2, "dp": 8}, "nanotron_pipelined"),
        ({"framework": "nanotron", "pp": 1, "dp": 16, "allreduce_gbps": "96"}, "nanotron_pipelined"),
        ({"framework": "nanotron", "pp": 1, "dp": 16, "inter_node": "measured allreduce 185.4 GB/s"}, "nanotron"),
    ],
)
def test_programs_by_what_rows_say_of_them(change: dict[str, Any], profile: str) -> None:
    assert job_of(ROW | change).software == profile


def test_every_profile_and_device_named_exists() -> None:
    assert {name for _, name in FRAMEWORKS} <= set(SOFTWARE)
    for words, device in DEVICES:
        assert device_named(" ".join(words)) is device
    assert device_named("H100 SXM 96GB HBM2e 500W (Meta Grand Teton)").power_watts == 500
    assert NumberFormat.fp8 not in device_named("A100 SXM4 40GB").peak_flops


def test_the_split_is_by_source_and_size() -> None:
    runs, skipped = runs_of()
    assert len(runs) == 289
    assert not skipped
    calibration = [run for run in runs if run.use is Use.calibration]
    left_out = [run for run in runs if run.use is Use.left_out]
    assert (len(calibration), len(left_out)) == (174, 93)
    whole = {run.source for run in left_out} - {run.source for run in calibration}
    assert {source.split(",")[0] for source in whole} >= {
        "Narayanan et al. 2021 (SC21) Table 1",
        "BigScience BLOOM-176B benchmark notes (2022-02)",
        "NVIDIA Megatron-Bridge performance summary",
        "torchtitan benchmarks async TP 2025-06",
    }
    assert max(run.job.split.world_size for run in calibration) == 128
    assert max(run.job.split.world_size for run in left_out) == 2048


def test_rows_of_another_file_calibrated_nothing(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"id": "two", "gpu": "TPU v4"}, ROW | {"id": "three", "complete": False}]
    rows += [ROW | {"id": "four", "framework": "torchtitan", "step_time_s": None, "tokens_per_s_per_gpu": 1000.0}]
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(rows))
    runs, skipped = runs_of(path)
    assert [(run.name, run.use) for run in runs] == [("one", Use.left_out), ("four", Use.left_out)]
    assert [line.split(":")[0] for line in skipped] == ["two", "three"]
    assert runs[1].step_seconds == pytest.approx(8192 * 16 * 4 / (1000 * 64))
    assert runs_of(RUNS)[0][0].name != "one"


def test_a_csv_is_read_as_the_json_it_is_restated_from(tmp_path: Path) -> None:
    rows = read_rows(RUNS)
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert read_rows(path) == rows


@pytest.mark.parametrize("text", ["{}", "[1]", "not json"])
def test_a_file_that_holds_no_rows_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"runs\.json"):
        read_rows(path)
    with pytest.raises(ConfigError, match=r"nowhere\.csv"):
        read_rows(tmp_path / "nowhere.csv")


def test_contradicting_rows_are_both_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(
        json.dumps([ROW, ROW | {"id": "same", "step_time_s": 3.1}, ROW | {"id": "other", "step_time_s": 4}])
    )
    uses = {run.name: (run.use, run.reason) for run in runs_of(path)[0]}
    assert {use for use, _ in uses.values()} == {Use.none}
    path.write_text(json.dumps([ROW, ROW | {"id": "same", "step_time_s": 3.1}]))
    assert {run.use for run in runs_of(path)[0]} == {Use.left_out}


def test_the_sweep_holds_its_runs() -> None:
    rows = sweep_rows()
    assert len(rows) == 2076
    assert sum(row["status"] == "Other" for row in rows) == 215
    assert len(sweep_runs()) == 849


def test_memory_figures_in_their_units() -> None:
    assert published_gib(ROW) is None
    assert published_gib(ROW | {"mem_gib": 10, "mem_kind": "rank-0 peak allocated GiB"}) == 10
    assert published_gib(ROW | {"mem_gib": 10, "mem_kind": "nvidia-smi used GB"}) == pytest.approx(10e9 / 2**30)
    job = job_of(ROW)
    smallest, largest = (
        predicted_gib({"mem_kind": kind}, job) for kind in ("rank-0 peak allocated GiB", "nvidia-smi used GB")
    )
    assert smallest < largest
