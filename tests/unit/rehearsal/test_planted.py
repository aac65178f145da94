"""Every kind of planted mistake is found and named, on several layouts; a sound rehearsal has none."""

from typing import Any

import pytest

from tests.unit.rehearsal.layouts import INTERLEAVED, rehearsal
from training.config.schema import Regather
from training.rehearsal.planted import MISTAKES, plant
from training.rehearsal.rehearsal import Rehearsal

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero3": {"zero_stage": 3, "narrow": True},
    "pipeline_zero3": {"pipeline": 4, "zero_stage": 3, "tied": True, "accumulation": 6, "narrow": True},
    "zero3_per_step": {
        "pipeline": 2,
        "data": 6,
        "zero_stage": 3,
        "regather": Regather.per_step,
        **INTERLEAVED,
    },
    "pipeline_zero1": {"pipeline": 2, "zero_stage": 1, "tied": True, "accumulation": 4},
    "pipeline_zero2_interleaved": {"pipeline": 4, "zero_stage": 2, "accumulation": 8, **INTERLEAVED},
    "one_replica": {"pipeline": 2, "data": 1, "zero_stage": 3, "accumulation": 4},
    "experts": {"pipeline": 2, "zero_stage": 3, "data": 8, "expert": 4, "experts": True, "accumulation": 4},
    "experts_sequence_zero2": {"zero_stage": 2, "data": 2, "sequence": 2, "expert": 2, "experts": True},
}
NO_ROOM = {
    "zero3": {
        "groups_made_in_another_order",
        "send_missing",
        "transfer_of_another_size",
        "receives_swapped",
        "schedule_deadlock",
        "pipeline_reads_other_samples",
        "tied_copy_elsewhere",
        "expert_owned_by_nobody",
        "bias_owned_by_nobody",
    },
    "pipeline_zero3": {"expert_owned_by_nobody", "bias_owned_by_nobody"},
    "zero3_per_step": {"tied_copy_elsewhere", "expert_owned_by_nobody", "bias_owned_by_nobody"},
    "pipeline_zero1": {"expert_owned_by_nobody", "bias_owned_by_nobody"},
    "pipeline_zero2_interleaved": {"tied_copy_elsewhere", "expert_owned_by_nobody", "bias_owned_by_nobody"},
    "one_replica": {
        *("collective_order_swapped", "collective_missing", "collective_twice", "collective_of_another_size"),
        *("collective_of_another_dtype", "collective_in_another_group", "collective_of_another_kind"),
        *("broadcast_from_another_root", "range_owned_twice", "range_owned_by_nobody", "moment_of_another_rank"),
        *("checkpoint_range_missing", "replicas_alike", "pipeline_reads_other_samples", "tied_copy_elsewhere"),
        *("expert_owned_by_nobody", "bias_owned_by_nobody"),
    },
    "experts": {"tied_copy_elsewhere"},
    "experts_sequence_zero2": {
        *("send_missing", "transfer_of_another_size", "receives_swapped", "schedule_deadlock"),
        *("pipeline_reads_other_samples", "tied_copy_elsewhere"),
    },
}
"""Mistakes that a layout cannot have."""


@pytest.fixture(scope="module", params=LAYOUTS)
def sound(request: pytest.FixtureRequest) -> tuple[str, Rehearsal]:
    return request.param, rehearsal(**LAYOUTS[request.param])


def test_a_sound_rehearsal_has_no_findings(sound: tuple[str, Rehearsal]) -> None:
    assert sound[1].check() == []


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_planted_mistake_is_found_and_its_rank_and_place_are_named(sound: tuple[str, Rehearsal], kind: str) -> None:
    name, rehearsed = sound
    trial = plant(rehearsed, kind)
    if kind in NO_ROOM[name]:
        assert trial is None
        return
    assert trial is not None
    found = "\n".join(finding.message for finding in trial.findings)
    assert trial.naming is not None, f"rank {trial.mistake.rank}, {trial.mistake.words}: {found}"
    assert rehearsed.check() == [], "planting a mistake has changed the sound rehearsal"


def test_there_are_twenty_kinds_and_more_in_a_pipeline_over_zero3() -> None:
    assert len(MISTAKES) - len(NO_ROOM["pipeline_zero3"]) >= 20
