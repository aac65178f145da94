"""Write the golden files anew: every experiment's resolved config and DeepSpeed dictionaries, batch scripts, wandb's
dashboard. Review it.

python -m tests.golden.rewrite
"""

import json
import sys
from pathlib import Path
from typing import Any

from launch.slurm.script import options, render
from training.config.deepspeed_config import deepspeed_config
from training.config.load import compose, to_yaml
from training.config.overrides import group_choices
from training.reporting.dashboard import plain, workspace

GOLDEN = Path(__file__).parent
FIXED_PATHS = [
    "run.root=/launch-directory/runs",
    "data.prepared_root=/launch-directory/prepared",
]
CORPORA = [f"data.sources.{name}.path=/launch-directory/corpora/{name}" for name in ("web", "code")]


BATCH_SCRIPTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "demo": (["cluster=slurm", "cluster.num_nodes=2", "cluster.processes_per_node=1"], {}),
    "everything": (
        [
            "cluster=azure_nd_h100_v5",
            "cluster.num_nodes=2",
            "cluster.processes_per_node=8",
            "stages.pretrain.global_batch_sequences=64",
            "stages.anneal.global_batch_sequences=64",
            "cluster.slurm.partition=gpu",
            "cluster.slurm.account=language-models",
            "cluster.slurm.qos=high",
            "cluster.slurm.time_limit=2-00:00:00",
            'cluster.slurm.constraint="h100&ib"',
            "cluster.slurm.exclude=[node017,node018]",
            "cluster.slurm.spare_nodes=1",
            "cluster.slurm.array_limit=2",
            "+cluster.slurm.directives.reservation=night",
            "+cluster.slurm.directives.contiguous=''",
            "+cluster.slurm.directives.switches='1@12:00:00'",
        ],
        {"exclude": ["node018", "node099"], "array_size": 5},
    ),
}
"""Name -> (overrides of experiment=demo, further arguments of `options`)."""


PLANNED_ONLY = ("llama3_405b",)
"""Experiments that no engine can run yet, so there is no DeepSpeed dictionary."""
ON_CORPORA = (
    *PLANNED_ONLY,
    "coder_long_context",
    "deepseek_v3_671b",
    "gpt4o_1800b",
    "llama3_70b",
    "llama3_8b",
    "mai1_500b",
    "mixtral_8x7b",
    "qwen3_30b_a3b",
)
"""Experiments that read corpora of one's own."""


def batch_scripts() -> dict[Path, str]:
    """Return path -> text of the golden batch scripts, as from /opt/autarky."""
    texts = {}
    for name, (overrides, further) in BATCH_SCRIPTS.items():
        config = compose(["experiment=demo", *FIXED_PATHS, *overrides])
        asked = options(config, output=f"{config.run.root}/night/slurm/%j.out", **further)
        number = further.get("array_size", 1)
        runs = [f"{config.run.root}/night-{index}" for index in range(number)] if number > 1 else ["/runs/night"]
        command = ["/opt/autarky/.venv/bin/python", "-m", "launch.slurm.job", *runs]
        texts[GOLDEN / "slurm" / f"{name}.sbatch"] = render(asked, command, repository=Path("/opt/autarky"))
    return texts


def dashboard_text() -> str:
    """Return the golden dashboard: what wandb's server would get, less random names."""
    return json.dumps(plain(workspace("team", "autarky")), indent=1) + "\n"


def golden_files() -> dict[Path, str]:
    """Return path -> content of every golden file that follows from conf/."""
    contents = {}
    for experiment in group_choices("experiment"):
        planned_only = experiment in PLANNED_ONLY
        config = compose(
            [f"experiment={experiment}", *FIXED_PATHS, *(CORPORA if experiment in ON_CORPORA else ())],
            to_plan=planned_only,
        )
        # What an experiment names by a relative path counts from here, which is another place on every machine.
        text = to_yaml(config).replace(f"{Path.cwd()}/", "/launch-directory/")
        contents[GOLDEN / "config" / f"{experiment}.yaml"] = text
        for name in () if planned_only else config.stages:
            dictionary = json.dumps(deepspeed_config(config, name), indent=2) + "\n"
            contents[GOLDEN / "deepspeed" / f"{experiment}.{name}.json"] = dictionary
    return contents | batch_scripts()


def main() -> int:
    """Replace the golden files."""
    for path, content in {**golden_files(), GOLDEN / "dashboard.json": dashboard_text()}.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(GOLDEN.parents[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
