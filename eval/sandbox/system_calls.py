"""Which system calls a sandbox refuses: what reaches past its namespaces, and what only an attack on the kernel needs.

Namespaces hide files, processes and networks. They do not hide kernel keyrings or virtual-machine sockets (AF_VSOCK
reaches the hypervisor from any network namespace), and they offer the kernel's rarely used parts to everybody. The
list follows those of Flatpak and Docker, with what a judged program does not need: System V memory and memfd would hold
memory that no resource limit counts.
"""

import ctypes
import ctypes.util
import errno
import os
import socket

from eval.sandbox.limits import SandboxUnavailable

REFUSED = (
    *("add_key", "keyctl", "request_key"),  # keyrings are inherited, whatever the namespace
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),  # makes sockets and opens files past this filter
    *("memfd_create", "memfd_secret", "shmget", "shmat", "shmctl", "msgget", "semget", "mq_open"),  # uncounted memory
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_by_handle_at", "name_to_handle_at"),
    *("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "lookup_dcookie", "syslog", "acct", "quotactl"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff"),
    *("iopl", "ioperm", "modify_ldt", "personality", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    *("mbind", "set_mempolicy", "migrate_pages", "move_pages", "sethostname", "setdomainname", "vhangup", "nfsservctl"),
)
_CLONE_NEWUSER = 0x10000000

_ALLOW = 0x7FFF0000
_NOT_EQUAL, _MASKED_EQUAL = 1, 7
_UNKNOWN = -1


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp` of seccomp.h."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def write_filter(descriptor: int) -> None:
    """Write the filter as the program that the kernel runs at every system call; another architecture's calls kill.

    Raises:
        SandboxUnavailable: there is no libseccomp, or it does not know a call that must be refused.
    """
    library = _library()
    context = library.seccomp_init(_ALLOW)
    try:
        for name in REFUSED:
            _refuse(library, context, name, errno.EPERM)
        _refuse(library, context, "clone3", errno.ENOSYS)  # its flags lie in memory; the C library goes back to clone
        _refuse(library, context, "clone", errno.EPERM, _Comparison(0, _MASKED_EQUAL, _CLONE_NEWUSER, _CLONE_NEWUSER))
        _refuse(library, context, "socket", errno.EACCES, _Comparison(0, _NOT_EQUAL, socket.AF_UNIX, 0))
        if library.seccomp_export_bpf(context, descriptor):
            raise SandboxUnavailable("libseccomp could not write the filter of system calls\n  -> update libseccomp2")
    finally:
        library.seccomp_release(context)
    os.lseek(descriptor, 0, os.SEEK_SET)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise SandboxUnavailable(
            f"no system call can be refused to a model's program: {error}\n"
            "  -> install libseccomp2 (apt) or libseccomp (dnf)"
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_release.restype = None
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Comparison)),
    ]
    return library


def _refuse(library: ctypes.CDLL, context: int, name: str, error: int, *conditions: _Comparison) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    action = 0x00050000 | error
    array = (_Comparison * max(len(conditions), 1))(*conditions)
    if number == _UNKNOWN or library.seccomp_rule_add_array(context, action, number, len(conditions), array):
        raise SandboxUnavailable(
            f"the system call {name} cannot be refused to a model's program: libseccomp does not know it\n"
            "  -> update libseccomp2 to 2.5.4 or newer"
        )
