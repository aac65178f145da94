"""Write the golden files anew: every experiment's resolved config and DeepSpeed dictionaries. Review the diff.

python -m tests.golden.rewrite
"""

import json
import sys
from pathlib import Path

from training.config.deepspeed_config import deepspeed_config
from training.config.load import compose, to_yaml
from training.config.overrides import group_choices

GOLDEN = Path(__file__).parent
FIXED_PATHS = ["run.root=/launch-directory/runs", "data.prepared_root=/launch-directory/prepared"]


def golden_files() -> dict[Path, str]:
    """Return path -> content of every golden file that follows from conf/."""
    contents = {}
    for experiment in group_choices("experiment"):
        config = compose([f"experiment={experiment}", *FIXED_PATHS])
        contents[GOLDEN / "config" / f"{experiment}.yaml"] = to_yaml(config)
        for name in config.stages:
            dictionary = json.dumps(deepspeed_config(config, name), indent=2) + "\n"
            contents[GOLDEN / "deepspeed" / f"{experiment}.{name}.json"] = dictionary
    return contents


def main() -> int:
    """Replace the golden files."""
    for path, content in golden_files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(GOLDEN.parents[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
