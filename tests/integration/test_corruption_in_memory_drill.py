"""The drill of flipped bits, a few trials under three layouts; and through whole runs: exit code, incident, no save."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.drills.corruption_in_memory import command, problems
from tests.drills.starts import ForkServer
from tests.integration.reading import records
from tests.integration.running import run_to_end
from tests.integration.test_recovery import BATCH, STEPS, run
from training.errors import ExitCode

LAYOUTS = ["ZeRO-0 fp32", "ZeRO-1 bf16", "pipeline 2 × ZeRO-3 bf16 interleaved"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("flips")
    output = folder / "found.json"
    finished = run_to_end(command(output, 2, 1, LAYOUTS), folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return json.loads(output.read_text())


@pytest.mark.timeout(300)
def test_flipped_bits_are_found_and_the_rank_is_named(found: list[dict[str, Any]]) -> None:
    assert problems(found) == []
    assert {row["check"] for one in found for row in one["rows"]} == {"at rest", "copies", "twice"}


def test_checks_change_no_number_and_a_step_that_is_not_accepted_none_either(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["same_numbers"], one["layout"]
        assert [skipped for *_, skipped in one["steps"]] == [False, False, False, True, False, False]
        assert all(0 < norm < 1e3 for _, norm, _ in one["steps"]), (
            "the norm of a step that was not accepted is known too"
        )


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


IN_THE_PIPELINE = BATCH * STEPS[0] + 2
CASES = {
    # the poison; settings; steps that are on record; last committed step; the rank
    "activation, step computed twice": (f"activation_bit=30:1:{BATCH * 7 + 2}", ["rerun_every_steps=4"], 7, 6, 1),
    "activation in the pipeline": (f"activation_bit=20:1:{IN_THE_PIPELINE + 8}", ["rerun_every_steps=16"], 15, 15, 1),
    "fp32 shard at rest": (f"shard_bit=3:0:{BATCH * 7 + 1}", ["at_rest_every_steps=1"], 7, 6, 0),
    "copy of a replica": (f"copy_bit=3:1:{BATCH * 8 + 2}", [], 9, 6, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_finds_corruption_ends_with_its_own_code_and_saves_nothing(
    server: ForkServer, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    poison, settings, steps, saved, rank = CASES[case]
    overrides = [f"fault_tolerance.corruption.{setting}" for setting in settings]
    overrides += ["parallel@stages.pretrain.parallel=zero1"] if case == "copy of a replica" else []
    ran = run(server, tmp_path_factory.mktemp("corrupt"), overrides, {"AUTARKY_POISON": poison}, {})
    assert ran.exit_codes == [ExitCode.SILENT_CORRUPTION, 0], ran.output[-4000:]
    (incident,) = ran.incidents("silent_corruption")
    assert f"rank {rank} on " in incident["message"]
    assert f"rank {1 - rank} on " not in incident["message"]
    first = [record for record in records(ran.directory, "step") if record["attempt"] == 0]
    assert len(first) == steps
    assert [i["message"] for i in ran.incidents("restart")] == [f"continues from step-{saved:08d}"]
