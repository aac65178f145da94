"""Overrides that turn one config into another: read back by the grammar that they are written in."""

import pytest

from training.config.differences import differences
from training.config.load import compose, compose_unchecked

BEFORE = ["experiment=demo", "run.root=/r"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.num_layers=6", "optimizer.lr=3e-05", "model.tied_embeddings=false"],
        ["run.name=a-b.c", "run.id=2026", "run.root='/a folder/with, a comma'"],
        ["stages.anneal.gate=null", "stages.pretrain.batch_ramp=[{until_tokens:8192,global_batch_sequences:8}]"],
        ["~stages.pretrain.mixture.python", "~stages.anneal.gate.conditions.no_worse"],
        ["+stages.anneal.eval_every_steps=3", "+cluster.environment.NAME=null-like", "resume.allow=[optimizer.lr]"],
        ["~stages.anneal"],
        ["eval.suites.quick.prompts=['true','say \"it\"']", "+deepspeed.extra.a={b:[1,true,null],c:text}"],
    ],
)
def test_the_overrides_of_all_differences_lead_from_one_config_to_the_other(overrides: list[str]) -> None:
    wanted = compose([*BEFORE, *overrides])
    found = [change.override for change in differences(compose(BEFORE), wanted)]
    assert compose([*BEFORE, *found]) == wanted
    assert len(found) >= len(overrides)


def test_a_config_does_not_differ_from_itself() -> None:
    assert differences(compose(BEFORE), compose(BEFORE)) == []


def test_what_is_composed_unchecked_is_what_a_check_would_have_passed() -> None:
    assert compose_unchecked(BEFORE) == compose(BEFORE)
