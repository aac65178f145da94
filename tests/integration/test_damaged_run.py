"""A run whose checkpoints came to harm: the start after that uses an older one, or refuses; it never begins anew."""

import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import Reference
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from tests.integration.running import kill, only_run, run_directories, submit, submit_to_end
from training.checkpoint.catalog import committed
from training.errors import ExitCode


@pytest.fixture(scope="module")
def killed(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that was killed after its checkpoint of step 12."""
    root = tmp_path_factory.mktemp("killed")
    folder = tmp_path_factory.mktemp("output")
    with submit([*reference.overrides, f"run.root={root}"], folder=folder) as job:
        job.wait_until(lambda: any((run / "checkpoints/step-00000012").is_dir() for run in run_directories(root)))
        kill(job.ranks()[1])
        assert job.survivors(within_seconds=30) == []
    assert ledger(only_run(root))["state"] != "done", "killed too late"
    return root


@pytest.fixture
def root(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run's root."""
    return Path(shutil.copytree(killed, tmp_path / "runs"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    root: Path, reference: Reference, tmp_path: Path
) -> None:
    run = only_run(root)
    newest, older = committed(run / "checkpoints")[:2]
    flip(newest / "rank-00001.safetensors")

    finished = submit_to_end([*reference.overrides, f"run.root={root}", "resume=auto"], folder=tmp_path)

    assert finished.exit_code == 0, finished.explain()
    assert only_run(root) == run
    (found,) = [record["message"] for record in records(run, "incident") if record["what"] == "corrupt_checkpoint"]
    assert str(newest / "rank-00001.safetensors") in found
    restart = [record["message"] for record in records(run, "incident") if record["what"] == "restart"]
    assert restart == [f"continues from {older.name}"]
    assert numbers_by_step(records(run, "step")) == numbers_by_step(records(reference.directory, "step"))
    assert contents(last_checkpoint(run)) == contents(last_checkpoint(reference.directory))
    assert newest.with_suffix(".damaged").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_starts_no_step_however_often_it_is_tried(
    root: Path, reference: Reference, tmp_path: Path
) -> None:
    run = only_run(root)
    checkpoints = committed(run / "checkpoints")
    for checkpoint in checkpoints:
        flip(checkpoint / "rank-00000.safetensors")
    steps = records(run, "step")
    for _ in range(2):
        finished = submit_to_end([*reference.overrides, f"run.root={root}", "resume=auto"], folder=tmp_path)
        assert finished.exit_code == ExitCode.CORRUPT_CHECKPOINT, finished.explain()
        assert f"none of the {len(checkpoints)} checkpoints" in finished.stderr
        assert str(checkpoints[0] / "rank-00000.safetensors") in finished.stderr
        assert "Traceback" not in finished.stderr
        assert only_run(root) == run, "a second run was begun"
        assert records(run, "step") == steps, "a step was made"
