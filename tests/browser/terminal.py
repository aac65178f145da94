"""What a terminal shows in the midst of a run, drawn from the run's own records."""

import io
from pathlib import Path

from rich.console import Console

from training.config.load import load_frozen
from training.reporting.console import ConsoleView
from training.reporting.event_lines import event_line, event_style
from training.reporting.metrics import FILE_NAME, read_metrics
from training.reporting.records import EventRecord, StepRecord

_COLUMNS = 120
_MOST_EVENTS = 8


def terminal_svg(run_directory: Path, *, step: int) -> str:
    """Return an SVG of the terminal after a step: the newest events, the bars and the numbers below them."""
    config = load_frozen(run_directory)
    view = ConsoleView(
        run_id=run_directory.name,
        stages=[(name, config.num_steps(name)) for name in config.stages],
        every_steps=config.reporting.console_every_steps,
        attempt=0,
        console=Console(file=io.StringIO(), force_terminal=True, width=_COLUMNS),
    )
    events: list[EventRecord] = []
    for record in read_metrics(run_directory / FILE_NAME).records:
        if isinstance(record, StepRecord) and record.step > step:
            break
        view.append(record)
        if isinstance(record, EventRecord):
            events.append(record)
    view.close()
    screen = Console(record=True, force_terminal=True, width=_COLUMNS, file=io.StringIO())
    for event in events[-_MOST_EVENTS:]:
        screen.print(
            event_line(event),
            style=event_style(event),
            markup=False,
            highlight=False,
            no_wrap=True,
            overflow="ellipsis",
        )
    screen.print(view.display)
    return screen.export_svg(title="python -m launch.submit experiment=demo")
