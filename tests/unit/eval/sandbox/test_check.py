"""A host that cannot isolate says so before anything runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.sandbox import command_line
from eval.sandbox.check import check_sandbox
from eval.sandbox.functions import FunctionCheck, check_function
from eval.sandbox.limits import SandboxUnavailable
from eval.sandbox.running import run_program
from tests.unit.eval.sandbox.available import why_not
from training.errors import ExitCode

REPOSITORY = Path(__file__).parents[4]
needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@needs_sandbox
def test_this_host_isolates() -> None:
    check_sandbox()


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("unshare", "setpriv", "sh"):
        if found := shutil.which(name):
            (tmp_path / name).symlink_to(found)
    monkeypatch.setattr(command_line, "PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"bwrap is missing\n  -> install bubblewrap") as caught:
        check_sandbox()
    assert caught.value.exit_code is ExitCode.PREFLIGHT
    with pytest.raises(SandboxUnavailable):
        run_program("raise SystemExit")
    with pytest.raises(SandboxUnavailable):
        check_function(FunctionCheck(program="", function="f", context="", test=""))


@needs_sandbox
def test_a_container_without_user_namespaces_is_refused(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = (
        "from eval.sandbox.limits import SandboxUnavailable\n"
        "from eval.sandbox.running import run_program\n"
        "try:\n"
        f'    run_program(\'open("{ran}", "w")\')\n'
        "except SandboxUnavailable as error:\n"
        "    print(error)\n"
    )
    # As in such a container: there is one user namespace, and none below it may be made.
    inside = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", inside, sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith("a model's programs cannot be isolated on this host: "), done
    assert "-> it needs bubblewrap 0.8 or newer, and user namespaces for ordinary users" in done.stdout
    assert not ran.exists()
