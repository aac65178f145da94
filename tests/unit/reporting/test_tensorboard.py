"""What TensorBoard itself reads of a run that was interrupted: each step once, as its latest attempt made it."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.unit.reporting.example_run import STAGES, eval_record, step_record
from training.reporting.records import IncidentRecord, LayersRecord, Record
from training.reporting.reporter import Reporter


def attempt(run_directory: Path, number: int, records: list[Record]) -> None:
    with Reporter.open(
        run_directory,
        run_id="demo-1",
        stages=STAGES,
        wandb_mode="disabled",
        console_every_steps=1000,
        attempt=number,
        tensorboard=True,
    ) as reporter:
        for record in records:
            reporter.record(record)


def read(run_directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_directory / "tensorboard"))
    events.Reload()
    return events


def points(events: EventAccumulator, name: str) -> dict[int, float]:
    found = [(event.step, event.value) for event in events.Scalars(name)]
    assert len(dict(found)) == len(found), "a step is there twice"
    return dict(found)


def test_steps_that_are_done_again_are_there_once(tmp_path: Path) -> None:
    restart = IncidentRecord(step=4, stage="pretrain", what="restart", message="from step 4", attempt=1)
    attempt(tmp_path, 0, [step_record(step) for step in range(1, 8)])
    attempt(tmp_path, 1, [restart, *(step_record(step, attempt=1, loss=9.0) for step in range(5, 10))])
    loss = points(read(tmp_path), "train/loss")
    assert list(loss) == list(range(1, 10))
    assert [step for step, value in loss.items() if value == 9.0] == list(range(5, 10))


def test_a_rollback_within_an_attempt_hides_what_it_undid(tmp_path: Path) -> None:
    again = [step_record(step, loss=9.0) for step in (3, 4)]
    attempt(tmp_path, 0, [*(step_record(step) for step in range(1, 7)), *again])
    assert list(points(read(tmp_path), "train/loss")) == [1, 2, 3, 4]


def test_evaluations_their_samples_and_layers_are_there(tmp_path: Path) -> None:
    layers = LayersRecord(
        step=1,
        stage="pretrain",
        attempt=0,
        names=["model.layers.0"],
        weight_norms=[2.0],
        grad_norms=[1.0],
        update_norms=[0.5],
    )
    before_the_first_step = eval_record(0, "start", 2.5)
    attempt(tmp_path, 0, [before_the_first_step, step_record(1), layers])
    events = read(tmp_path)
    assert points(events, "eval/quick/bits_per_byte") == {0: 2.5}
    assert points(events, "layers/model.layers.0/update_ratio") == {1: 0.25}
    assert "samples/quick/0/text_summary" in events.Tags()["tensors"]
