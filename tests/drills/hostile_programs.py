"""Hostile programs that take all they can get: processes, time, memory, files, output."""

from eval.sandbox.limits import Ending
from tests.drills.hostile import SYSCALL, TRY, Hostile

_OVER_TIME = frozenset({Ending.cpu_time, Ending.wall_time, Ending.killed})

PROCESSES = [
    Hostile(
        name="fork bomb",
        source="import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        endings=_OVER_TIME,
    ),
    Hostile(
        name="fork bomb in new sessions that ignores signals",
        source="""
import os, signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        if not os.fork():
            os.setsid()
    except OSError:
        pass
""",
        endings=_OVER_TIME,
    ),
    Hostile(
        name="thread bomb",
        source="""
import threading, time
number = 0
try:
    while number < 10_000:
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        number += 1
except RuntimeError:
    print("threads", number)
""",
        says=r"threads \d\b",
    ),
    Hostile(
        name="daemon that outlives its parent",
        source="""
import os, signal, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for descriptor in range(64):
    try:
        os.close(descriptor)
    except OSError:
        pass
time.sleep(1000)
""",
    ),
    Hostile(
        name="daemon that holds its output",
        source="import os, time\nif os.fork():\n    print('gone', flush=True)\n    os._exit(0)\ntime.sleep(1000)",
        says="gone",
    ),
    Hostile(
        name="kills its parent, everybody, every number",
        source="""
import os
for number in (os.getppid(), PARENT, -1, *range(3, 70_000)):
    try:
        os.kill(number, 9)
        if number != 1:
            print("ESCAPED: killed", number)
    except OSError:
        pass
print("alive")
""",
        says="",
        endings=frozenset({Ending.exited, Ending.killed}),
    ),
    Hostile(
        name="takes all limits from the first process",
        source="""
import os, resource, time
for name in ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_SIGPENDING"):
    resource.prlimit(1, getattr(resource, name), (0, 0))
while True:  # orphans, so that it has to work
    try:
        if not os.fork():
            os.fork()
            os._exit(0)
        os.wait()
    except OSError:
        pass
""",
        endings=_OVER_TIME,
    ),
    Hostile(name="stops itself", source="import os\nos.kill(os.getpid(), 19)", endings=frozenset({Ending.wall_time})),
    Hostile(
        name="becomes itself again and again",
        source="import os, sys\nos.execv(sys.executable, [sys.executable, '-I', '-S', '/code/program.py'])",
        endings=_OVER_TIME,
    ),
    Hostile(name="busy loop", source="while True:\n    pass", endings=_OVER_TIME),
    Hostile(
        name="busy loop that ignores SIGXCPU",
        source="import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
        endings=_OVER_TIME,
    ),
    Hostile(name="sleeps for ever", source="import time\ntime.sleep(10**6)", endings=frozenset({Ending.wall_time})),
    Hostile(
        name="closes its output and sleeps",
        source="import os, time\nos.close(1)\nos.close(2)\ntime.sleep(10**6)",
        endings=frozenset({Ending.wall_time}),
    ),
    Hostile(
        name="crashes the interpreter", source="import ctypes\nctypes.string_at(0)", exit_statuses=frozenset({139})
    ),
]

RESOURCES = [
    Hostile(name="endless stdout", source="while True:\n    print('y' * 1000)", endings=frozenset({Ending.output})),
    Hostile(
        name="endless stderr without an end of line",
        source="import sys\nwhile True:\n    sys.stderr.write('n' * 100_000)",
        endings=frozenset({Ending.output}),
    ),
    Hostile(
        name="a huge file",
        source="""
written = 0
try:
    with open("/tmp/huge", "wb") as file:
        while written < 2**34:
            written += file.write(b"x" * 2**20)
except OSError as error:
    print("MiB", written // 2**20)
""",
        says=r"MiB \d\d?\b",
    ),
    Hostile(
        name="a sparse file",
        source=TRY + "with open('/tmp/sparse', 'wb') as file:\n    attempt('sparse', lambda: file.truncate(2**40))",
    ),
    Hostile(
        name="fills /tmp",
        source="""
import os
written = 0
try:
    for number in range(100_000):
        with open(f"/tmp/{number}", "wb", buffering=0) as file:
            while file.tell() < 2**23:
                written += file.write(b"x" * 2**20)
except OSError:
    print("MiB", written // 2**20)
""",
        says=r"MiB \d\d?\b",
    ),
    Hostile(
        name="empty files without number",
        source="import os\nn = 0\nwhile True:\n    os.close(os.open(f'/tmp/{n}', os.O_CREAT))\n    n += 1",
        endings=_OVER_TIME,
    ),
    Hostile(
        name="fills the rest of the file system",
        source=TRY
        + """
for folder, _, _ in os.walk("/"):
    if folder != "/tmp" and not folder.startswith("/tmp/"):
        attempt("a file in " + folder, lambda: open(folder + "/full", "wb"))
""",
    ),
    Hostile(name="100 GB", source="memory = bytearray(100 * 10**9)", endings=frozenset({Ending.memory})),
    Hostile(
        name="memory in every process it can have",
        source="""
import os
while True:
    try:
        if not os.fork():
            break
    except OSError:
        break
kept = []
try:
    while True:
        kept.append(bytearray(2**20))
except MemoryError:
    while True:
        pass
""",
        endings=_OVER_TIME,
        limits={"memory_bytes": 128 * 2**20},
    ),
    Hostile(
        name="memory that no process holds",
        source=SYSCALL
        + """
attempt("memfd", lambda: os.memfd_create("x"))
libc.shmget.restype = ctypes.c_int
if libc.shmget(0, ctypes.c_size_t(2**28), 0o1600) >= 0:
    print("ESCAPED: shmget")
import mmap
attempt("/dev/shm", lambda: open("/dev/shm/x", "wb"))
""",
    ),
    Hostile(
        name="memory in pipes",
        source="""
import fcntl, os
filled = 0
try:
    while True:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            fcntl.fcntl(writer, 1031, 2**20)
        except OSError:
            pass
        try:
            while True:
                filled += os.write(writer, b"x" * 65536)
        except BlockingIOError:
            pass
except OSError:
    print("MiB", filled // 2**20)
""",
        says=r"MiB \d\d?\b",
    ),
    Hostile(
        name="100,000 open files",
        source="""
kept = []
try:
    for number in range(100_000):
        kept.append(open("/dev/null"))
except OSError:
    print("open", len(kept))
""",
        says=r"open \d\d?\b",
    ),
    Hostile(
        name="raises its limits",
        source=TRY
        + """
import resource
for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_FSIZE"):
    number, least = getattr(resource, name), resource.getrlimit(getattr(resource, name))[1]
    for most in (least + 1, resource.RLIM_INFINITY):
        attempt(name, lambda: resource.setrlimit(number, (most, most)))
    attempt(name + " of another", lambda: resource.prlimit(PARENT, number, (least + 1, least + 1)))
attempt("nice", lambda: os.nice(-5))
""",
    ),
]
