"""A hostfile is read strictly: what DeepSpeed pastes into a shell is a plain name, and mistakes name their line."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.hosts import Host, chosen_hosts, parse, to_text
from training.config.load import compose
from training.errors import ConfigError

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def hostfile(folder: Path, text: str) -> str:
    path = folder / "hosts"
    path.write_text(text)
    return f"cluster.hostfile.path={path}"


@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), st.integers(1, 1024))
def test_what_is_written_is_read_back(names: list[str], slots: int) -> None:
    hosts = [Host(name=name, slots=slots, line=number) for number, name in enumerate(names, start=1)]
    assert parse(to_text(hosts), "hosts") == hosts


@given(st.text(alphabet=string.printable, max_size=60))
def test_whatever_stands_in_a_file_only_plain_names_come_out(text: str) -> None:
    try:
        hosts = parse(text, "hosts")
    except ConfigError:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", host.name) for host in hosts)
    assert len({host.name for host in hosts}) == len(hosts)


def test_comments_and_empty_lines_are_skipped() -> None:
    text = "# rack 1\n\nnode1 slots=8\n  node2\tslots=8  # the new one\r\n"
    assert parse(text, "hosts") == [Host(name="node1", slots=8, line=3), Host(name="node2", slots=8, line=4)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no host"),
        ("# nothing\n", "names no host"),
        ("node1\n", "line 1: 'node1' is not NAME slots=N"),
        ("node1 slots=8 max_slots=8\n", "line 1: 'node1 slots=8 max_slots=8' is not"),
        ("node1 slots=8\nnode2 slots=0\n", "line 2: slots=0"),
        ("node1 slots=-1\n", "line 1: slots=-1"),
        ("node1 slots=٣\n", "line 1: slots=٣"),
        ("node1 slots=99999\n", "line 1: slots=99999"),
        ("node1 slots=8\n\nnode1 slots=8\n", "line 3: node1 stands in line 1 already"),
        ("-oProxyCommand=reboot slots=8\n", "line 1: '-oProxyCommand=reboot' is no host name"),
        ("node1;reboot slots=8\n", "line 1: 'node1;reboot' is no host name"),
        ("$(reboot) slots=8\n", "line 1: '$(reboot)' is no host name"),
        ("root@node1 slots=8\n", "line 1: 'root@node1' is no host name"),
        ("node[1-4] slots=8\n", "line 1: 'node[1-4]' is no host name"),
    ],
)
def test_a_line_that_is_none_is_named(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        parse(text, "hosts")


def test_the_file_decides_how_many_ranks_there_are(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "a slots=1\nb slots=1\nc slots=1\nd slots=1\n")
    words = ["experiment=smoke", "cluster=hostfile", path]
    cluster = compose([*words]).cluster
    assert (cluster.num_nodes, cluster.processes_per_node) == (4, 1)
    fewer = compose([*words, "cluster.num_nodes=2"]).cluster
    assert [host.name for host in chosen_hosts(fewer)] == ["a", "b"]
    chosen = compose([*words, "cluster.hostfile.exclude=[b,c]"]).cluster
    assert [host.name for host in chosen_hosts(chosen)] == ["a", "d"]
    chosen = compose([*words, "cluster.hostfile.include=[d,b]"]).cluster
    assert [host.name for host in chosen_hosts(chosen)] == ["b", "d"]


def test_a_run_may_use_fewer_slots_than_hosts_have(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "a slots=8\n")
    cluster = compose(["experiment=smoke", "cluster=hostfile", path, "cluster.processes_per_node=2"]).cluster
    assert chosen_hosts(cluster) == [Host(name="a", slots=2, line=1)]


def test_a_launchers_own_world_counts_more_than_the_file(tmp_path: Path) -> None:
    words = ["experiment=smoke", "cluster=hostfile", f"cluster.hostfile.path={tmp_path}/not_here"]
    assert compose(words, world=(2, 1)).world_size == 2


@pytest.mark.parametrize(
    ("text", "override", "key", "remedy"),
    [
        ("a slots=2\nb slots=4\n", "run.seed=0", "cluster.hostfile.path", "slots=2 on every line works"),
        ("a slots=2\n", "cluster.num_nodes=2", "cluster.num_nodes", "cluster.num_nodes=1 works"),
        ("a slots=2\n", "cluster.processes_per_node=4", "cluster.processes_per_node", "processes_per_node=2 works"),
        ("node1 slots=2\n", "cluster.hostfile.exclude=[nod1]", "cluster.hostfile.exclude", "did you mean node1?"),
        ("node1 slots=2\n", "cluster.hostfile.include=[x]", "cluster.hostfile.include", "it has node1"),
        ("node1 slots=2\n", "cluster.hostfile.exclude=[node1]", "cluster.hostfile.exclude", "exclude fewer"),
    ],
)
def test_what_the_file_cannot_give_is_refused(text: str, override: str, key: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(remedy)) as caught:
        compose(["experiment=smoke", "cluster=hostfile", hostfile(tmp_path, text), override])
    assert caught.value.key == key


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe"), lambda path: None])
def test_what_is_no_text_file_is_refused(make: object, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    assert callable(make)
    make(path)
    with pytest.raises(ConfigError, match="NAME slots=N"):
        compose(["experiment=smoke", "cluster=hostfile", f"cluster.hostfile.path={path}"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("cluster.hostfile.interface='eth0;reboot'", "letters, digits"),
        ("cluster.hostfile.master_addr='-x'", "letters, digits"),
        ("cluster.hostfile.ssh_config='/a b'", "cuts ssh's options at spaces"),
        ("cluster.hostfile.export=[WANDB_API_KEY]", "process list"),
        ("cluster.hostfile.export=[hf_token]", "process list"),
        ("cluster.hostfile.export=['A=1']", "no name of an environment variable"),
        ("cluster.hostfile.launcher_args=['a\x07b']", "control characters"),
        ("cluster.hostfile.ssh_port=0", "between 1 and 65535"),
        ("+cluster.environment.NCCL_DEBUG_FILE='$(reboot)'", "the shells on the way"),
        ("cluster.launcher=local", "would ignore it"),
    ],
)
def test_words_that_do_not_belong_on_a_command_line_are_refused(override: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        compose(["experiment=smoke", "cluster=hostfile", hostfile(tmp_path, "a slots=2\n"), override])


def test_a_launcher_without_its_hosts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.hostfile\.path=FILE"):
        compose(["experiment=smoke", "cluster.launcher=hostfile"])
