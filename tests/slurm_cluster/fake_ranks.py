"""Ranks that only pretend, on a real cluster: what a start ends with follows from a table, in a second instead of ten.

`sitecustomize` of a folder on PYTHONPATH runs in every interpreter of the job; in a rank, or in a node's check, it
does what the table says and ends the process before any of the product's code is read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SITECUSTOMIZE = """\
import json, os, pathlib, sys
words = [word for word in pathlib.Path("/proc/self/cmdline").read_text().split("\\0") if word]
plan = json.loads({plan!r})
start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
in_step = "SLURM_STEP_ID" in os.environ
if in_step and "launch.preflight" in words and os.environ["SLURMD_NODENAME"] in plan["broken_nodes"]:
    os._exit(1)
if in_step and "training.train" in words:
    run = pathlib.Path(words[words.index("training.train") + 1])
    end = plan["ends"][min(start, len(plan["ends"]) - 1)]
    if os.environ["SLURM_PROCID"] == "0":
        (run / "seen.jsonl").open("a").write(json.dumps({{
            "words": words,
            "start": start,
            **{{name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST", "SEEN")}},
        }}) + "\\n")
        if end["step"]:
            record = {{"kind": "step", "step": end["step"]}}
            (run / "metrics.jsonl").open("a").write(json.dumps(record) + "\\n")
        if end["report"] is not None:
            (run / "exit.json").write_text(json.dumps(end["report"]))
        if end["exit_code"] == 0:
            name = next((w.partition("=")[2] for w in words if w.startswith("run.until=")), None)
            done = ["pretrain", "anneal"][: 1 if name == "pretrain" else 2]
            stages = [{{"name": n, "status": "promoted" if n in done else "pending"}} for n in ("pretrain", "anneal")]
            state = "done" if len(done) == 2 else "running"
            (run / "stages.json").write_text(json.dumps({{"state": state, "stages": stages}}))
        sys.stdout.flush()
        os._exit(end["exit_code"])
    os._exit(0)
"""


def end(exit_code: int, *, step: int = 0, report: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return how one start ends: the exit code of rank 0, the last step it says it did, what exit.json then holds."""
    return {"exit_code": exit_code, "step": step, "report": report}


def fake_ranks(folder: Path, ends: Sequence[dict[str, Any]], *, broken_nodes: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment to submit with; start n ends like `ends[n]`, later ones like the last."""
    folder.mkdir()
    plan = json.dumps({"ends": list(ends), "broken_nodes": list(broken_nodes)})
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(plan=plan))
    return {"PYTHONPATH": str(folder)}


def seen(directory: Path) -> list[dict[str, Any]]:
    """Return what rank 0 saw in every start."""
    path = directory / "seen.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
