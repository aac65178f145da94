"""The batch script: golden, clean to shellcheck, and nothing that a value says becomes a command or an option."""

import os
import random
import shutil
import string
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launch.slurm.script import options, render
from tests.golden.rewrite import batch_scripts
from training.config.checks import check
from training.config.load import compose
from training.config.schema import RunConfig
from training.config.slurm_schema import ContainerConfig, SlurmConfig
from training.errors import ConfigError

BASE = compose(["experiment=smoke", "cluster=slurm", "cluster.num_nodes=2", "run.root=/runs", "data.prepared_root=/p"])
HOSTILE = [
    *("$(touch {marker})", "`touch {marker}`", "; touch {marker}", "&& touch {marker}", "| touch {marker}"),
    *("\ntouch {marker}", "\n#SBATCH --wrap=touch {marker}", "\r\ntouch {marker}", "x\x00touch {marker}"),
    *("'; touch {marker}; '", '"; touch {marker}; "', "\\\ntouch {marker}", "${{IFS}}touch${{IFS}}{marker}"),
    *("x --wrap=true", "x #", "%j", "../../x", "-x", "--wrap=x", "~root", "*", "?", "{{a,b}}", "a b", "\u2028", "ö"),
    *("$HOME", "!!", "<(touch {marker})", ">{marker}", "x\ty", "\x1b[2J", "", " ", "#", "=", "x" * 5000),
]
NUM_FUZZED = 1000


@pytest.mark.parametrize("path", sorted(batch_scripts()), ids=lambda path: path.name)
def test_a_batch_script_equals_its_golden_file_and_pleases_shellcheck(path: Path) -> None:
    assert path.read_text() == batch_scripts()[path], "review, then: python -m tests.golden.rewrite"
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: make packages")
    subprocess.run(["shellcheck", str(path)], check=True, timeout=60)


def hostile_text(draw: random.Random, marker: Path) -> str:
    """Return a text that would do harm in a shell, in sbatch's parser or in a file name; sometimes a harmless one."""
    text = draw.choice(HOSTILE).format(marker=marker)
    where = draw.randrange(4)
    letters = "".join(draw.choice(string.ascii_letters + string.digits + "._-") for _ in range(draw.randrange(8)))
    return [text, letters + text, text + letters, letters or "x"][where]


def with_hostile_value(config: RunConfig, draw: random.Random, text: str) -> RunConfig:
    """Return the config with a text in one of all the places from which a value reaches a script or a command."""
    slurm = config.cluster.slurm
    assert slurm is not None
    other = draw.choice(["reservation", "gres", "mail-user", "nodelist", text])
    changed: list[SlurmConfig] = [
        *(replace(slurm, **{name: text}) for name in ("partition", "account", "qos", "constraint", "time_limit")),
        replace(slurm, exclude=["node1", text]),
        replace(slurm, directives={other: text}),
        replace(slurm, directives={text: "1"}),
        replace(slurm, container=ContainerConfig(image=text)),
        replace(slurm, container=ContainerConfig(image="/a.sqsh", mounts=[text])),
        replace(slurm, container=ContainerConfig(image="/a.sqsh", python=text)),
    ]
    cluster = config.cluster
    configs = [
        *(replace(config, cluster=replace(cluster, slurm=section)) for section in changed),
        replace(config, cluster=replace(cluster, environment={text: "1"})),
        replace(config, run=replace(config.run, name=text)),
        replace(config, run=replace(config.run, id=text)),
        replace(config, run=replace(config.run, root=f"/runs/{text}")),
        replace(config, data=replace(config.data, prepared_root=f"/data/{text}")),
    ]
    return draw.choice(configs)


def recorder(folder: Path) -> Path:
    """Return a stand-in for the interpreter that writes down its words and does nothing else."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{folder}/words\n')
    path.chmod(0o755)
    return path


def run_script(text: str, folder: Path) -> list[str]:
    """Return the words that a script hands to the interpreter when a shell runs it; nothing else may happen."""
    script = folder / "job.sbatch"
    script.write_text(text)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    environment = {"PATH": os.defpath, "HOME": str(folder)}
    subprocess.run(["bash", str(script)], check=True, timeout=30, cwd=folder, env=environment, capture_output=True)
    return (folder / "words").read_text().splitlines()


def test_a_thousand_hostile_values_are_refused_or_harmless(tmp_path: Path) -> None:
    draw = random.Random(20)
    marker, python = tmp_path / "marker", str(recorder(tmp_path))
    refused = rendered = 0
    for _ in range(NUM_FUZZED):
        text = hostile_text(draw, marker)
        config = with_hostile_value(BASE, draw, text)
        directory = f"{config.run.root}/{config.run.id or 'night'}"
        command = [python, "-m", "launch.slurm.job", directory]
        try:
            check(config)
            asked = options(config, output=f"{directory}/slurm/%j.out")
            script = render(asked, command)
        except ConfigError:
            refused += 1
            continue
        rendered += 1
        directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        assert directives == [
            f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in asked.items()
        ]
        if rendered <= 100:  # bash takes milliseconds, but a thousand times
            assert run_script(script, tmp_path) == command[1:]
        assert not marker.exists(), text
    assert refused > NUM_FUZZED / 2
    assert rendered > 100


def test_rendering_refuses_by_itself_what_no_check_has_seen(tmp_path: Path) -> None:
    draw = random.Random(21)
    marker, python = tmp_path / "marker", str(recorder(tmp_path))
    base = options(BASE, output="/runs/night/slurm/%j.out")
    refused = 0
    for _ in range(NUM_FUZZED):
        text = hostile_text(draw, marker)
        asked, command = dict(base), [python, "-m", "launch.slurm.job", "/runs/night"]
        place = draw.randrange(3)
        if place == 0:
            asked["partition"] = text
        elif place == 1:
            asked[text] = "1"
        else:
            command.append(text)
        try:
            script = render(asked, command)
        except ConfigError:
            refused += 1
            continue
        lines = script.splitlines()
        assert len([line for line in lines if line.startswith("#SBATCH --")]) == len(asked)
        assert len(lines) == 2 + len(asked) + 2 + len(command) - 2
    assert refused > NUM_FUZZED / 3
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "key", "remedy"),
    [
        ("cluster.slurm.partition='\"a;b\"'", "cluster.slurm.partition", "write ab"),
        ("cluster.slurm.time_limit='\"2 days\"'", "cluster.slurm.time_limit", "D-HH:MM:SS"),
        ("cluster.slurm.time_limit=00:05:00", "cluster.slurm.time_limit", "fewer signal_seconds"),
        ("+cluster.slurm.directives.wrap=x", "cluster.slurm.directives.wrap", "allowed:"),
        ("+cluster.slurm.directives.reservatoin=x", "cluster.slurm.directives.reservatoin", "did you mean reservation"),
        ("+cluster.slurm.directives.mem=4G", "cluster.slurm.directives.mem", "exclusive=false"),
        ("cluster.slurm.exclude=['\"node[1-3]\"']", "cluster.slurm.exclude", "every node's name"),
        ("+cluster.environment.RANK='3'", "cluster.environment.RANK", "leave it out"),
        ("+cluster.environment.LD_PRELOAD=x", "cluster.environment.LD_PRELOAD", "leave it out"),
        ("+cluster.environment.WANDB_API_KEY=x", "cluster.environment.WANDB_API_KEY", "leave it in the environment"),
        ("+cluster.environment.MY_TOKEN_2=x", "cluster.environment.MY_TOKEN_2", "export MY_TOKEN_2"),
        ("cluster.slurm=null", "cluster.launcher", "cluster.slurm={}"),
        ("run.until=preetrain", "run.until", "run.until=pretrain"),
        ("cluster.slurm.no_progress_starts=1", "cluster.slurm.no_progress_starts", "no_progress_starts=2"),
    ],
)
def test_impossible_values_are_refused_with_the_remedy(change: str, key: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=smoke", "cluster=slurm", change])
    assert caught.value.key == key
    assert remedy in caught.value.remedy


def test_a_secret_in_the_environment_map_is_not_even_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=smoke", "+cluster.environment.HF_TOKEN=canary9f3a"])
    assert "canary9f3a" not in str(caught.value)
