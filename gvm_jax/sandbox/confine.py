"""Confines a process for good before it runs an untrusted program: no files, network or processes of others.

Works without privileges and in ordinary containers: resource limits, Landlock (files; Documentation/userspace-api/
landlock.rst of Linux) and a seccomp filter (system calls). All three hold for root too, and none can be taken back. The
filter names what is allowed, so a system call that it does not know is refused. Runs in the child: nothing here is
imported but the standard library.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

FILE_BYTES = 16 * 2**20  # of one file
OPEN_FILES = 64


class Unprotected(Exception):  # noqa: N818
    """The kernel lacks a protection; the message names it and the remedy."""


def confine(folder: str | None, seconds: float, memory_bytes: int) -> None:
    """Confines this process, which has one thread.

    Args:
      folder: the one it may make, read and write files in, though no folders and no links; None = nowhere. It cannot
        remove or rename them: an open file without a name takes space that nobody sees.
      seconds: of CPU time.
      memory_bytes: of address space beyond what is mapped now.

    Raises:
      Unprotected: the kernel or the machine cannot do it. The process must not go on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _limit_resources(seconds, memory_bytes)
    _call(libc.prctl, 38, 1, 0, 0, 0, name="PR_SET_NO_NEW_PRIVS")
    _restrict_files(libc, folder)
    _restrict_calls(libc)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when `parent`, its parent's id, ends; ends it at once if that has happened."""
    _call(ctypes.CDLL(None, use_errno=True).prctl, 1, 9, 0, 0, 0, name="PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


def _call(function, *arguments, name: str, remedy: str = "use Linux 5.13 or newer, outside gVisor and the like") -> int:
    found = function(*map(ctypes.c_long, arguments))
    if found < 0:
        reason = os.strerror(ctypes.get_errno())
        raise Unprotected(f"{name} is not available here ({reason}): {remedy}")
    return found


def _limit_resources(seconds: float, memory_bytes: int) -> None:
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_AS, mapped + memory_bytes),
        (resource.RLIMIT_CPU, int(seconds) + 2),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


# Landlock: numbers of include/uapi/linux/landlock.h.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_WRITE_FILE, _READ_FILE, _READ_DIR, _MAKE_REG, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 8, 1 << 14
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by the version that has them


def _restrict_files(libc, folder: str | None) -> None:
    remedy = "use Linux 5.13 or newer with landlock among the boot parameter lsm=, and a container that allows it"
    version = _call(libc.syscall, _CREATE_RULESET, 0, 0, 1, name="Landlock", remedy=remedy)
    handled = next(rights for since, rights in sorted(_RIGHTS.items(), reverse=True) if since <= version)
    attributes = struct.pack("Q", handled)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = _call(
        libc.syscall, _CREATE_RULESET, ctypes.addressof(buffer), len(attributes), 0, name="Landlock", remedy=remedy
    )

    def allow(path: str, rights: int) -> None:
        if not os.path.exists(path):
            return
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights & handled, opened))
        _call(libc.syscall, _ADD_RULE, ruleset, 1, ctypes.addressof(rule), 0, name="Landlock", remedy=remedy)
        os.close(opened)

    library = os.path.dirname(os.__file__)
    own = [library, *(f"{prefix}/lib" for prefix in (sys.base_prefix, sys.base_exec_prefix))]
    for path in (*own, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"):
        allow(os.path.realpath(path), _READ_FILE | _READ_DIR)
    for path in ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom"):
        allow(os.path.realpath(path), _READ_FILE)
    allow("/dev/null", _READ_FILE | _WRITE_FILE | _TRUNCATE)
    if folder is not None:
        allow(folder, _READ_FILE | _READ_DIR | _WRITE_FILE | _MAKE_REG | _TRUNCATE)
    _call(libc.syscall, _RESTRICT_SELF, ruleset, 0, name="Landlock", remedy=remedy)
    os.close(ruleset)


# seccomp: the calls that a program of one process needs, by their numbers on x86-64 and AArch64 (None: not there).
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "munmap": (11, 215), "brk": (12, 214), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "newfstatat": (262, 79), "getdents64": (217, 61), "futex": (202, 98), "getrandom": (318, 278),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "stat": (4, None), "lstat": (6, None), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "ftruncate": (77, 46),
    "fsync": (74, 82), "fdatasync": (75, 83), "fadvise64": (221, 223), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "close_range": (436, 436), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179),
    "umask": (95, 166), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "rseq": (334, 293), "membarrier": (324, 283),
}  # fmt: skip
_OPENAT, _FCNTL, _PRLIMIT64 = (257, 56), (72, 25), (302, 261)  # allowed with some arguments
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN could send signals
_ACCESS_MODE, _TRUNCATE_FLAG, _NAMELESS_FLAG = 0o3, 0o1000, 0o20000000  # of <fcntl.h>
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

# Classic BPF: instruction codes of linux/bpf_common.h, results of linux/seccomp.h, offsets in struct seccomp_data.
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
_NUMBER, _ARCHITECTURE = 0, 4


def _argument(index: int, high: bool = False) -> int:
    return 16 + 8 * index + 4 * high


def call_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter as instructions (code, jump if true, jump if false, operand).

    Opening a file to read cannot truncate it, which the first versions of Landlock do not see, and no file is made
    without a name (O_TMPFILE). Limits can be read and not set: root could raise them.
    """
    column, architecture = _MACHINES[machine]

    def branch(number: int, then: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
        return [(_IF_EQUAL, 0, len(then), number), *then]

    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)
    fcntl = [(_LOAD, 0, 0, _argument(1))]
    for command in _FCNTL_COMMANDS:
        fcntl += branch(command, [allow])
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in _ALLOWED.values():
        if numbers[column] is not None:
            program += branch(numbers[column], [allow])
    program += branch(
        _OPENAT[column],
        [
            (_LOAD, 0, 0, _argument(2)),
            (_AND, 0, 0, _NAMELESS_FLAG),
            *branch(_NAMELESS_FLAG, [refuse]),
            (_LOAD, 0, 0, _argument(2)),
            (_AND, 0, 0, _ACCESS_MODE | _TRUNCATE_FLAG),
            *branch(_TRUNCATE_FLAG, [refuse]),
            allow,
        ],
    )
    program += branch(_FCNTL[column], [*fcntl, refuse])
    reads_own_limit = [
        (_LOAD, 0, 0, _argument(0)),
        (_IF_EQUAL, 0, 5, 0),
        (_LOAD, 0, 0, _argument(2)),
        (_IF_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _argument(2, high=True)),
        (_IF_EQUAL, 0, 1, 0),
        allow,
        refuse,
    ]
    return [*program, *branch(_PRLIMIT64[column], reads_own_limit), refuse]


def _restrict_calls(libc) -> None:
    machine = platform.machine()
    if machine not in _MACHINES or sys.byteorder != "little" or struct.calcsize("P") != 8:
        raise Unprotected(f"the seccomp filter knows {' and '.join(_MACHINES)}, this machine is {machine}")
    instructions = call_filter(machine)
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(buffer)))
    _call(
        libc.prctl, 22, 2, ctypes.addressof(program), 0, 0, name="seccomp",
        remedy="use a kernel with CONFIG_SECCOMP_FILTER, and a container that allows it",
    )  # fmt: skip
