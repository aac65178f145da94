import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.endpoint.journal import Journal
from training.errors import DataError, RunInUse, StorageError

REPOSITORY = Path(__file__).parents[4]


def send(journal: Journal, key: str, **values: Any) -> int:
    numbers = {"try_number": 0, "most_input_tokens": 10, "max_output_tokens": 5}
    return journal.write_sent(key, **{"task": "t", "url": "https://a.b", "body": {"prompt": key}, **numbers, **values})


def response(text: str, tokens: tuple[int, int] | None = (3, 2)) -> dict[str, Any]:
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}}
    return {"choices": [{"text": text}], **usage}


def filled(path: Path) -> None:
    """Answered, refused, answered by a server that does not count, lost, under way."""
    journal = Journal(path)
    journal.write_answered(send(journal, "a"), response("é\u2028\x85 \n"), seconds=0.5)
    journal.write_failed(send(journal, "b"), "status 429", may_be_billed=False)
    journal.write_answered(send(journal, "b"), response("B", None), seconds=1.0)
    journal.write_failed(send(journal, "c"), "no answer within 3 seconds", may_be_billed=True)
    send(journal, "d")
    journal.close()


def test_what_was_answered_is_there_again_and_what_may_be_billed_is_counted(tmp_path: Path) -> None:
    filled(tmp_path / "j.jsonl")
    for read_only in (True, False):
        journal = Journal(tmp_path / "j.jsonl", read_only=read_only)
        assert set(journal.answers) == {"a", "b"}
        assert journal.answers["a"].response == response("é\u2028\x85 \n")
        assert (journal.answers["a"].tokens, journal.answers["b"].tokens) == ((3, 2), None)
        assert [sent.key for sent in journal.uncounted] == ["b"]
        assert [sent.key for sent in journal.possibly_billed] == ["c", "d"]
        journal.close()


def test_attempts_are_numbered_on_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path / "j.jsonl")
    journal = Journal(tmp_path / "j.jsonl")
    assert send(journal, "e") == 6


def test_a_kill_at_any_byte_loses_at_most_the_line_it_tore(tmp_path: Path) -> None:
    """Every length that the file ever had: what was whole is there, and the next line makes the file whole again."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    filled(whole)
    content = whole.read_bytes()
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        num_lines = content[:length].count(b"\n")
        lines = content.splitlines(keepends=True)[:num_lines]
        found = Journal(cut, read_only=True)
        assert found.torn_bytes == length - len(b"".join(lines))
        assert set(found.answers) == {json.loads(line)["key"] for line in lines if b'"answered"' in line}
        if length % 40 and content[length - 1 : length + 1].count(b"\n") == 0:
            continue  # writing takes its time
        journal = Journal(cut)
        send(journal, "next")
        journal.close()
        assert Journal(cut, read_only=True).torn_bytes == 0
        assert cut.read_bytes().splitlines(keepends=True)[:-1] == lines


def test_reading_only_leaves_a_torn_line_where_it_is(tmp_path: Path) -> None:
    filled(tmp_path / "j.jsonl")
    torn = (tmp_path / "j.jsonl").read_bytes()[:-7]
    (tmp_path / "j.jsonl").write_bytes(torn)
    assert Journal(tmp_path / "j.jsonl", read_only=True).torn_bytes > 0
    assert (tmp_path / "j.jsonl").read_bytes() == torn


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(actions=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["answer", "refuse", "lose", "kill"]))))
def test_no_answer_is_ever_asked_for_twice(tmp_path: Path, actions: list[tuple[str, str]]) -> None:
    """A client that asks for what is not there, hurt anyhow: one answer per key, and every other attempt accounted."""
    path = tmp_path / "j.jsonl"
    path.unlink(missing_ok=True)
    done, lost = set[str](), 0
    journal = Journal(path)
    for key, action in actions:
        if key in journal.answers:
            continue
        attempt = send(journal, key)
        if action == "answer":
            journal.write_answered(attempt, response(key), seconds=0.0)
            done.add(key)
        elif action == "kill":
            journal.close()
            journal = Journal(path)
            lost += 1
        else:
            journal.write_failed(attempt, action, may_be_billed=action == "lose")
            lost += action == "lose"
        assert set(journal.answers) == done
        assert len(journal.possibly_billed) == lost
    journal.close()
    assert set(Journal(path, read_only=True).answers) == done


@pytest.mark.parametrize("line", ["{}", "[]", "null", '{"event": "sent"}', '{"event": "x"}', "\0\0", '{"event": []}'])
def test_a_damaged_line_is_named_and_nothing_is_paid_again(tmp_path: Path, line: str) -> None:
    filled(tmp_path / "j.jsonl")
    content = (tmp_path / "j.jsonl").read_bytes()
    (tmp_path / "j.jsonl").write_bytes(content + f"{line}\n".encode())
    with pytest.raises(DataError, match=f"line {content.count(10) + 1} of .* is none of a journal"):
        Journal(tmp_path / "j.jsonl")
    assert (tmp_path / "j.jsonl").read_bytes().startswith(content)


def test_two_processes_do_not_pay_for_the_same_answers(tmp_path: Path) -> None:
    held = Journal(tmp_path / "j.jsonl")
    with pytest.raises(RunInUse, match="another process"):
        Journal(tmp_path / "j.jsonl")
    Journal(tmp_path / "j.jsonl", read_only=True)
    held.close()
    Journal(tmp_path / "j.jsonl").close()


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files, in a process of its own, stands for the disk."""
    filled(tmp_path / "j.jsonl")
    before = set(Journal(tmp_path / "j.jsonl", read_only=True).answers)
    code = """
import resource, signal, sys
from pathlib import Path
from tests.unit.eval.endpoint.test_journal import Journal, StorageError, response, send
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(path)
attempt = send(journal, "e")
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, path.stat().st_size + 20))
try:
    journal.write_answered(attempt, response("E"), seconds=0.0)
except StorageError as error:
    sys.exit(0 if "cannot be written" in str(error) else 2)
sys.exit(1)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "j.jsonl")], cwd=REPOSITORY, timeout=60, check=False
    )
    assert ran.returncode == 0
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.torn_bytes == 20
    assert set(journal.answers) == before
    assert [sent.key for sent in journal.possibly_billed] == ["c", "d", "e"]


def test_a_journal_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(tmp_path / "file" / "j.jsonl")
