"""A rank notes every signal whatever it is doing, dies of none, and neither do its helpers; real processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import stop_signals
from training.errors import ExitCode
from training.fault_tolerance.signals import ECHO_SECONDS, SIGNALS, START_UP_SECONDS

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import ctypes, os, signal, subprocess, sys, time
from training.fault_tolerance.signals import StopRequest
def say(word): print(word, flush=True)
def wait_until_told():
    while not request.is_told: time.sleep(0.01)
"""
STARTED = PROGRAM + "request = StopRequest.listen(); request.has_started(); say('ready')\n"


class Rank:
    """A process that runs a program; its words are read line by line."""

    def __init__(self, program: str, before_exec: Callable[[], None] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before_exec,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_of_many_signals_is_remembered_and_none_ends_the_process(number: signal.Signals) -> None:
    rank = Rank(STARTED + "wait_until_told(); say('told'); time.sleep(0.5); say(request.stopped()); os._exit(10)")
    assert rank.says() == "ready"
    rank.send(number)
    assert rank.says() == "told"
    for _ in range(3):
        rank.send(signal.SIGTERM)
        rank.send(signal.SIGUSR1)
    assert rank.says() == f"told to stop by {number.name}"
    assert rank.ends() == ExitCode.STOPPED


def test_a_signal_is_noted_while_native_code_holds_the_main_thread() -> None:
    """As in a collective: no Python handler could run before it returns, and an interrupted call might fail."""
    native = "left = ctypes.CDLL(None).sleep(2); say(f'{left} {request.is_told}'); os._exit(0)"
    rank = Rank(STARTED + native)
    assert rank.says() == "ready"
    time.sleep(0.2)
    rank.send(signal.SIGTERM)
    assert rank.says() == "0 True", "sleep(3) returns the seconds that are left when a signal interrupts it"
    assert rank.ends() == 0


def test_what_a_rank_has_started_survives_a_signal_to_the_whole_session() -> None:
    helper = "[sys.executable, '-c', 'import time; time.sleep(100)']"
    rank = Rank(
        f"{STARTED}os.setsid(); helper = subprocess.Popen({helper}); time.sleep(0.5)\n"
        "os.killpg(0, signal.SIGTERM); os.killpg(0, signal.SIGUSR1); os.killpg(0, signal.SIGINT)\n"
        "wait_until_told(); time.sleep(0.5); say(helper.poll()); helper.kill(); os._exit(0)"
    )
    assert rank.says() == "ready"
    assert rank.says() == "None"
    assert rank.ends() == 0


def test_a_signal_that_comes_before_anybody_listens_is_kept_if_the_launcher_blocked_it() -> None:
    rank = Rank(
        f"import os, signal; os.kill(os.getpid(), signal.SIGUSR1)\n{STARTED}"
        "wait_until_told(); say(request.signal.name); os._exit(0)",
        stop_signals.block,
    )
    assert rank.says() == "ready"
    assert rank.says() == "SIGUSR1"
    assert rank.ends() == 0


def test_a_rank_that_is_told_while_it_waits_for_the_others_to_start_leaves_in_bounded_time() -> None:
    rank = Rank(PROGRAM + "request = StopRequest.listen(); say('ready'); time.sleep(100)")
    assert rank.says() == "ready"
    begun = time.monotonic()
    rank.send(signal.SIGTERM)
    time.sleep(START_UP_SECONDS / 2)
    rank.send(signal.SIGUSR1)  # does not prolong it
    assert rank.ends() == ExitCode.STOPPED
    assert time.monotonic() - begun >= START_UP_SECONDS - 0.1
    assert rank.process.stderr is not None
    assert "told to stop by SIGTERM before all ranks had started" in rank.process.stderr.read()


def test_a_rank_that_has_started_never_leaves_by_itself() -> None:
    seconds = START_UP_SECONDS + 1
    rank = Rank(
        f"{PROGRAM}request = StopRequest.listen(); say('ready'); wait_until_told(); request.has_started()\n"
        f"time.sleep({seconds}); say('still here'); os._exit(7)"
    )
    assert rank.says() == "ready"
    rank.send(signal.SIGTERM)
    assert rank.says() == "still here"
    assert rank.ends() == 7


def test_a_second_ctrl_c_kills_but_not_the_echo_of_the_first_by_a_launcher() -> None:
    rank = Rank(STARTED + "wait_until_told(); say('told'); time.sleep(100)")
    assert rank.says() == "ready"
    rank.send(signal.SIGINT)
    assert rank.says() == "told"
    rank.send(signal.SIGINT)
    time.sleep(ECHO_SECONDS + 0.2)
    assert rank.process.poll() is None
    rank.send(signal.SIGINT)
    assert rank.ends() == -signal.SIGKILL
