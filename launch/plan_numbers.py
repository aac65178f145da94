"""A plan as plain numbers, for JSON."""

from dataclasses import asdict
from typing import Any

from training.planner.flops import PUBLISHED, published_mfu
from training.planner.job import Job
from training.planner.run_plan import RunPlan, StagePlan
from training.planner.search import Candidate, SearchResult


def plan_numbers(plan: RunPlan) -> dict[str, Any]:
    """Return all numbers of a plan; units are in the names."""
    return {
        "name": plan.name,
        "num_nodes": plan.num_nodes,
        "devices_per_node": plan.devices_per_node,
        "device": plan.device,
        "num_parameters": plan.num_parameters,
        "num_active_parameters": plan.num_active_parameters,
        "num_prediction_blocks_left_out": plan.num_prediction_blocks,
        "is_muon_planned_as_adamw": plan.is_muon,
        "stages": {stage.training_stage: _stage(stage) for stage in plan.stages},
        "goodput": asdict(plan.goodput) if plan.goodput is not None else None,
        "served": asdict(plan.served) if plan.served is not None else None,
    }


def search_numbers(result: SearchResult, *, most: int) -> dict[str, Any]:
    """Return the best layouts, the Pareto front and the refusals."""
    return {
        "num_layouts": result.num_layouts,
        "num_fitting": len(result.ranked),
        "ranked": [_candidate(candidate) for candidate in result.best(most)],
        "pareto": [_candidate(candidate) for candidate in result.pareto()],
        "refused": [
            {"reason": reason, "layouts": number, "example": example} for reason, number, example in result.refused
        ],
    }


def _stage(stage: StagePlan) -> dict[str, Any]:
    return {
        "layout": stage.layout,
        "runs_today": stage.runs_today,
        "regather": stage.regather,
        "split": asdict(stage.job.split),
        "batch": asdict(stage.job.batch),
        "num_steps": stage.num_steps,
        "batch_ramp": [{"num_steps": steps, "sequences": sequences} for steps, sequences in stage.batch_ramp],
        "mean_step_seconds": stage.mean_step_seconds,
        "tokens": stage.tokens,
        "memory": [{**asdict(part), "total_bytes": part.total_bytes} for part in stage.memory],
        "verdict": asdict(stage.verdict),
        "step": asdict(stage.time),
        "traffic": asdict(stage.traffic),
        "tokens_per_second": stage.tokens_per_second,
        "mfu_causal_attention": stage.mfu,
        "mfu_full_attention": stage.mfu_full_attention,
        "hfu_causal_attention": stage.hfu,
        "mfu_by_convention": {
            convention: published_mfu(stage.job, stage.time.seconds, convention) for convention in PUBLISHED
        },
        "undisturbed_days": stage.undisturbed_days,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    job: Job = candidate.job
    return {
        "layout": candidate.layout,
        "split": asdict(job.split),
        "batch": asdict(job.batch),
        "step_seconds": candidate.time.seconds,
        "tokens_per_second": candidate.tokens_per_second,
        "mfu_causal_attention": candidate.mfu,
        "memory_bytes": candidate.verdict.needed_bytes,
        "device_seconds_per_token": candidate.device_seconds_per_token,
        "runs_today": candidate.runs_today,
    }
