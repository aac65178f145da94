"""Programs that try to harm the host or to get out of their sandbox, as a model might write them.

A program says ESCAPED if something worked that must not. Words in capitals that stand for the host's side (PORT,
PARENT …) are filled in by `tests/drills/sandbox.py`, which also knows what must be true of the host afterwards.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from eval.sandbox.limits import Ending


@dataclass(frozen=True, kw_only=True, slots=True)
class Hostile:
    """One program and how it must end."""

    name: str
    source: str
    endings: frozenset[Ending] = frozenset({Ending.exited})
    says: str = ""
    """Regular expression that its stdout must match somewhere."""
    limits: dict[str, Any] = field(default_factory=dict)

    def problems(self, ending: Ending, stdout: str) -> list[str]:
        found = [line for line in stdout.splitlines() if "ESCAPED" in line]
        if ending not in self.endings:
            found.append(f"it ended by {ending}, not {sorted(self.endings)}")
        if not re.search(self.says, stdout):
            found.append(f"it said {stdout[:200]!r}, not {self.says!r}")
        return found


_OVER_TIME = frozenset({Ending.cpu_time, Ending.wall_time, Ending.killed})

_TRY = """
import errno, os, sys

def attempt(what, call):
    try:
        result = call()
    except BaseException as error:
        return error
    print("ESCAPED:", what, repr(result)[:80])

"""
_SYSCALL = (
    _TRY
    + """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def refused(name, number, *arguments, errors=(errno.EPERM,)):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    if result >= 0 or ctypes.get_errno() not in errors:
        print("ESCAPED:", name, result, os.strerror(ctypes.get_errno()))

"""
)

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
    Hostile(name="crashes the interpreter", source="import ctypes\nctypes.string_at(0)"),
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
        source=_TRY + "with open('/tmp/sparse', 'wb') as file:\n    attempt('sparse', lambda: file.truncate(2**40))",
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
        source=_TRY
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
        source=_SYSCALL
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
        source=_TRY
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

HOST = [
    Hostile(
        name="deletes files",
        source=_TRY
        + """
import shutil
for path in CANARIES:
    attempt("removed " + path, lambda: os.remove(path))
    attempt("wrote " + path, lambda: open(path, "r+").write("gone"))
    attempt("its folder", lambda: shutil.rmtree(os.path.dirname(path)) if os.path.dirname(path) != "/tmp" else 1 / 0)
shutil.rmtree("/", ignore_errors=True)
os.system("rm -rf /")
""",
    ),
    Hostile(
        name="reads secrets",
        source=_TRY
        + """
print(dict(os.environ), sys.argv)
for path in [*CANARIES, "/proc/1/environ", "/proc/PARENT/environ", "/proc/self/environ", "/proc/PARENT/mem",
             "/proc/PARENT/cwd/Makefile", "/proc/PARENT/root/etc/passwd", "/etc/passwd", "/etc/shadow", "/etc/hostname",
             HOME + "/.ssh", HOME + "/.bash_history", HOME + "/.netrc", "/root/.ssh/id_rsa", "/var/log/syslog"]:
    attempt("read " + path, lambda: open(path, "rb").read(100))
for path in [HOME, HOME + "/.ssh", REPOSITORY, "/etc", "/home", "/proc", "/sys", "/run", "/var", "/mnt"]:
    allowed = sys.base_prefix.startswith(path)
    attempt("listed " + path, lambda: 1 / 0 if allowed else os.listdir(path))
""",
    ),
    Hostile(
        name="looks for a secret in all it can read",
        source="""
import os
for folder, _, names in os.walk("/"):
    if folder.startswith("/dev"):
        continue
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                if b"canary of the" in file.read(10**6) and name != "program.py":
                    print("ESCAPED:", folder, name)
        except OSError:
            pass
print("looked")
""",
        says="looked",
        limits={"wall_seconds": 60.0, "cpu_seconds": 30},
    ),
    Hostile(
        name="inherited descriptors",
        source=_TRY + "for number in range(3, 5000):\n    attempt(f'descriptor {number}', lambda: os.fstat(number))",
    ),
    Hostile(
        name="symbolic and hard links",
        source=_TRY
        + """
for number, path in enumerate(CANARIES):
    os.symlink(path, f"/tmp/link{number}")
    attempt("wrote through a link", lambda: open(f"/tmp/link{number}", "r+").write("gone"))
    attempt("hard link", lambda: os.link(path, f"/tmp/hard{number}"))
os.symlink("../../../../../..", "/tmp/up")
attempt("up", lambda: open("/tmp/up/etc/passwd").read(10))
attempt("link over the library", lambda: os.rename("/tmp/up", os.__file__))
for name in ("/dev/fd/3", "/proc/self/exe", "/proc/self/root", "/dev/stdin"):
    attempt(name, lambda: os.readlink(name))
""",
    ),
    Hostile(
        name="changes the library",
        source=_TRY
        + """
import json
for path in (os.__file__, json.__file__, sys.executable, "/code/first_program.py", "/code/program.py"):
    attempt("opened " + path, lambda: open(path, "a"))
    attempt("removed " + path, lambda: os.remove(path))
    attempt("changed " + path, lambda: os.chmod(path, 0o777))
folder = os.path.dirname(os.__file__)
for name in ("sitecustomize.py", "__pycache__/os.cpython-311.pyc", "json/__pycache__/__init__.cpython-311.pyc"):
    attempt("wrote " + name, lambda: open(os.path.join(folder, name), "wb"))
os.makedirs("/tmp/.local/lib/python3.11/site-packages")
with open("/tmp/.local/lib/python3.11/site-packages/usercustomize.py", "w") as file:
    file.write("raise SystemExit('poisoned')")
with open("/tmp/json.py", "w") as file:
    file.write("raise SystemExit('poisoned')")
""",
    ),
    Hostile(
        name="settings of the kernel",
        source=_TRY
        + """
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
             "/sys/kernel/uevent_helper", "/sys/fs/cgroup/release_agent", "/sys/power/state", "/dev/mem", "/dev/kmsg",
             "/dev/sda", "/dev/vda", "/dev/kvm", "/dev/fuse", "/dev/tty", "/dev/ptmx", "/dev/net/tun", "/dev/vsock",
             "/dev/nvidia0", "/dev/nvidiactl", "/dev/infiniband/uverbs0"):
    attempt("wrote " + path, lambda: open(path, "wb", buffering=0).write(b"1"))
attempt("made a device", lambda: os.mknod("/tmp/mem", 0o60666, os.makedev(8, 0)))
""",
    ),
]

NETWORK = [
    Hostile(
        name="listener on 127.0.0.1",
        source=_TRY
        + """
import socket
attempt("TCP", lambda: socket.create_connection(("127.0.0.1", PORT), timeout=2).send(b"hello"))
attempt("TCP, IPv6", lambda: socket.create_connection(("::1", PORT), timeout=2))
attempt("UDP", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", ("127.0.0.1", PORT)))
""",
    ),
    Hostile(
        name="UNIX sockets, in a folder and abstract",
        source=_TRY
        + """
import socket
for address in UNIX_ADDRESSES:
    attempt("connected " + repr(address), lambda: socket.socket(socket.AF_UNIX).connect(address))
""",
    ),
    Hostile(
        name="names, the cloud's metadata, the internet",
        source=_TRY
        + """
import socket, urllib.request
attempt("DNS", lambda: socket.getaddrinfo("example.com", 80))
attempt("localhost", lambda: urllib.request.urlopen("http://127.0.0.1:PORT/", timeout=2))
for host in ("169.254.169.254", "192.0.2.1"):
    attempt(host, lambda: socket.create_connection((host, 80), timeout=1))
""",
    ),
    Hostile(
        name="every other family of sockets",
        source=_TRY
        + """
import socket
for family in range(0, 64):
    if family != socket.AF_UNIX:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            attempt(f"socket {family} {kind}", lambda: socket.socket(family, kind))
""",
    ),
]

KERNEL = [
    Hostile(
        name="root again",
        source=_TRY
        + """
for name, call in {"setuid": lambda: os.setuid(0), "setgid": lambda: os.setgid(0),
                   "setgroups": lambda: os.setgroups([0]), "seteuid": lambda: os.seteuid(0),
                   "chroot": lambda: os.chroot("/tmp")}.items():
    attempt(name, call)
for program in ("/bin/su", "/usr/bin/sudo", "/bin/mount", "/usr/bin/newuidmap", "/bin/sh", "/usr/bin/bwrap"):
    attempt("ran " + program, lambda: os.execv(program, [program]))
""",
    ),
    Hostile(
        name="mounts and namespaces",
        source=_SYSCALL
        + """
import platform
numbers = {
    "x86_64": {"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
               "open_tree": 428, "fsopen": 430, "mount_setattr": 442, "clone": 56},
    "aarch64": {"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268,
                "open_tree": 428, "fsopen": 430, "mount_setattr": 442, "clone": 220},
}[platform.machine()]
flags = numbers.pop("clone")
for name, number in numbers.items():
    refused(name, number, b"/tmp", b"/tmp", b"tmpfs", 0, 0)
for flag in (0x10000000, 0x10000000 | 0x20000000, 0x10000000 | 0x40000000):
    refused("unshare", numbers["unshare"], flag)
    refused("clone", flags, flag | 17, 0, 0, 0, 0)
refused("clone3", 435, 0, 0, errors=(errno.ENOSYS,))
""",
    ),
    Hostile(
        name="rare system calls",
        source=_SYSCALL
        + """
import platform
numbers = {
    "x86_64": {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "keyctl": 250, "add_key": 248,
               "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "kexec_load": 246,
               "init_module": 175, "finit_module": 313, "open_by_handle_at": 304, "personality": 135, "kcmp": 312,
               "quotactl": 179, "acct": 163, "swapon": 167, "syslog": 103},
    "aarch64": {"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "keyctl": 219, "add_key": 217,
                "request_key": 218, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "kexec_load": 104,
                "init_module": 105, "finit_module": 273, "open_by_handle_at": 265, "personality": 92, "kcmp": 272,
                "quotactl": 60, "acct": 89, "swapon": 224, "syslog": 116},
}[platform.machine()]
for name, number in (numbers | {"io_uring_setup": 425, "pidfd_getfd": 438, "memfd_secret": 447}).items():
    refused(name, number, 0, 0, 0, 0, 0)
""",
    ),
    Hostile(
        name="system calls of another architecture",
        source="""
import ctypes, mmap, platform
if platform.machine() == "x86_64":
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    print("ESCAPED:", ctypes.CFUNCTYPE(ctypes.c_int)(address)())
""",
        endings=frozenset({Ending.exited}),
    ),
    Hostile(
        name="types into the terminal",
        source=_TRY
        + "import fcntl\nfor number in (0, 1, 2):\n    attempt('TIOCSTI', lambda: fcntl.ioctl(number, 0x5412, b'x'))",
    ),
    Hostile(
        name="other processes' memory",
        source=_TRY
        + """
for number in (1, os.getppid(), PARENT):
    for name in ("mem", "environ", "maps", "ns/mnt", "fd/0", "root/etc/passwd"):
        attempt(f"/proc/{number}/{name}", lambda: open(f"/proc/{number}/{name}", "rb").read(1))
    if number > 2:
        attempt("pidfd", lambda: os.pidfd_open(number))
        attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, number, 19))
""",
    ),
]

HOSTILE_PROGRAMS = [*PROCESSES, *RESOURCES, *HOST, *NETWORK, *KERNEL]
