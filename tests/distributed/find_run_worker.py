"""One rank: finds the run of several command lines and writes what it was told.

python -m tests.distributed.find_run_worker FOLDER      FOLDER holds commands.json, gets rank-N.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from training.config.arguments import parse_arguments
from training.engine import process_group
from training.errors import ConfigError
from training.find_run import find_run


def main() -> None:
    folder = Path(sys.argv[1])
    processes = process_group.start(60)
    answers: list[dict[str, Any]] = []
    for words in json.loads((folder / "commands.json").read_text()):
        try:
            directory, config, lease = find_run(parse_arguments(words), processes)
        except ConfigError as error:
            answers.append({"error": str(error)})
        else:
            if lease is not None:
                lease.release()
            resume, layout = config.resume, config.stages["pretrain"].parallel
            assert layout is not None
            found = {"directory": str(directory), "mode": resume.mode, "allow": resume.allow}
            answers.append({**found, "zero_stage": layout.zero_stage, "lr": config.optimizer.lr})
    (folder / f"rank-{processes.rank}.json").write_text(json.dumps(answers))
    process_group.stop()


if __name__ == "__main__":
    main()
