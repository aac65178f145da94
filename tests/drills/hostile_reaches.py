"""Hostile programs that reach for what is not theirs: the host's files, its network, its kernel, other processes."""

import platform

from tests.drills.hostile import SYSCALL, TRY, Hostile

HOST = [
    Hostile(
        name="deletes files",
        source=TRY
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
        works_outside=True,
        source=TRY
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
    ),
    Hostile(
        name="inherited descriptors",
        source=TRY + "for number in range(3, 5000):\n    attempt(f'descriptor {number}', lambda: os.fstat(number))",
    ),
    Hostile(
        name="symbolic and hard links",
        source=TRY
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
        source=TRY
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
        source=TRY
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
        works_outside=True,
        source=TRY
        + """
import socket
attempt("TCP", lambda: socket.create_connection(("127.0.0.1", PORT), timeout=2).send(b"hello"))
attempt("TCP, IPv6", lambda: socket.create_connection(("::1", PORT), timeout=2))
attempt("UDP", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", ("127.0.0.1", PORT)))
""",
    ),
    Hostile(
        name="UNIX sockets, in a folder and abstract",
        works_outside=True,
        source=TRY
        + """
import socket
for address in UNIX_ADDRESSES:
    attempt("connected " + repr(address), lambda: socket.socket(socket.AF_UNIX).connect(address))
""",
    ),
    Hostile(
        name="names, the cloud's metadata, the internet",
        source=TRY
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
        source=TRY
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
        source=TRY
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
        source=SYSCALL
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
        source=SYSCALL
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
        exit_statuses=frozenset(
            {159, 139} if platform.machine() == "x86_64" else {0}
        ),  # SIGSYS, or no such calls at all
    ),
    Hostile(
        name="types into the terminal",
        source=TRY
        + "import fcntl\nfor number in (0, 1, 2):\n    attempt('TIOCSTI', lambda: fcntl.ioctl(number, 0x5412, b'x'))",
    ),
    Hostile(
        name="other processes' memory",
        source=TRY
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
