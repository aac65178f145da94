"""Corrections are found from runs, little from few, and reach plans; what is no calibration is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.config.load import compose
from training.errors import ConfigError
from training.planner.calibration import (
    Calibration,
    Point,
    constants_of,
    corrected,
    fit,
    measured_points,
    write_calibration,
)
from training.planner.from_config import job_of
from training.planner.job import Job
from training.planner.run_plan import plan_run
from training.planner.step_time import step_time

LLAMA3 = compose(
    [
        *("experiment=llama3_405b", "model=llama3_8b", "parallel.pipeline=1", "parallel.tensor=1"),
        *("parallel.chunks_per_rank=1", "parallel.schedule=1f1b", "cluster.num_nodes=16", "parallel.zero_stage=3"),
    ],
    to_plan=True,
)
JOB = job_of(LLAMA3, "pretrain")
TRUTH = Calibration(compute=1.4, links=0.7, host=2.0, step_seconds=0.05, points={})


def layouts() -> list[Job]:
    splits = [
        replace(JOB.split, replicas=128 // (pipeline * tensor), pipeline=pipeline, tensor=tensor, zero_stage=zero_stage)
        for pipeline in (1, 2, 4)
        for tensor in (1, 4)
        for zero_stage in (1, 3)
    ]
    return [replace(JOB, split=split, batch=replace(JOB.batch, accumulation=8)) for split in splits]


def test_known_corrections_are_found_from_the_steps_that_they_make() -> None:
    constants = corrected(TRUTH)
    points = [
        Point(what=str(n), job=j, measured_seconds=step_time(j, constants).seconds) for n, j in enumerate(layouts())
    ]
    found = fit(points)
    for measured, _, after in found.points.values():
        assert after == pytest.approx(measured, rel=0.05)  # the noise that is assumed
    assert found.compute == pytest.approx(TRUTH.compute, rel=0.05)


def test_a_perfect_plan_is_left_alone() -> None:
    points = [Point(what=str(n), job=j, measured_seconds=step_time(j).seconds) for n, j in enumerate(layouts())]
    found = fit(points)
    assert found.compute == pytest.approx(1, rel=0.01)
    assert found.links == pytest.approx(1, rel=0.02)


def test_a_calibration_file_changes_plans(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, TRUTH)
    cluster = replace(LLAMA3.cluster, calibration=str(path))
    assert constants_of(cluster) == corrected(TRUTH)
    assert constants_of(replace(cluster, calibration=None)) == corrected(Calibration(points={}))
    slower, usual = (
        plan_run(LLAMA3, constants).stages[0].time.passes.gemm
        for constants in (constants_of(cluster), constants_of(LLAMA3.cluster))
    )
    assert slower == pytest.approx(1.4 * usual)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 1, "calibration": {"compute": "x"}}',
        '{"version": 1, "calibration": {"compute": 0.0, "points": {}}}',
        '{"version": 1, "calibration": {"host": -3.0, "points": {}}}',
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="--calibrate FILE RUN_DIR"):
        constants_of(replace(LLAMA3.cluster, calibration=str(path)))


def test_a_directory_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        measured_points(tmp_path)
