"""The filter of system calls, run by an interpreter of its instructions, for both machines it knows."""

import errno
import struct

import pytest

from gvm_jax.sandbox.confine import call_filter

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
# Numbers of Linux's headers: asm/unistd_64.h and asm-generic/unistd.h.
NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "open": 2, "mmap": 9, "ioctl": 16, "shmget": 29, "socket": 41, "connect": 42,
        "sendmsg": 46, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "fcntl": 72,
        "truncate": 76, "rename": 82, "mkdir": 83, "unlink": 87, "link": 86, "symlink": 88, "chmod": 90, "chown": 92,
        "ptrace": 101, "mknod": 133, "setrlimit": 160, "mount": 165, "tkill": 200, "tgkill": 234, "keyctl": 250,
        "openat": 257, "symlinkat": 266, "unlinkat": 263, "renameat": 264, "renameat2": 316, "unshare": 272,
        "prlimit64": 302, "setns": 308, "process_vm_writev": 311, "seccomp": 317, "memfd_create": 319, "bpf": 321,
        "execveat": 322, "pidfd_send_signal": 424, "io_uring_setup": 425, "clone3": 435, "openat2": 437, "fsopen": 430,
    },
    "aarch64": {
        "read": 63, "write": 64, "mmap": 222, "ioctl": 29, "shmget": 194, "socket": 198, "connect": 203, "sendmsg": 211,
        "socketpair": 199, "clone": 220, "execve": 221, "kill": 129, "fcntl": 25, "truncate": 45, "unlinkat": 35,
        "renameat": 38, "renameat2": 276, "mkdirat": 34, "linkat": 37, "symlinkat": 36, "fchmodat": 53, "fchownat": 54,
        "ptrace": 117, "mknodat": 33, "setrlimit": 164, "mount": 40, "tkill": 130, "tgkill": 131, "keyctl": 219,
        "openat": 56, "unshare": 97, "prlimit64": 261, "setns": 268, "process_vm_writev": 271, "seccomp": 277,
        "memfd_create": 279, "bpf": 280, "execveat": 281, "pidfd_send_signal": 424, "io_uring_setup": 425,
        "clone3": 435, "openat2": 437, "fsopen": 430,
    },
}  # fmt: skip
BY_ARGUMENTS = ("fcntl", "openat", "prlimit64")
FREE = ("read", "write", "mmap")


def decide(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the kernel would do: classic BPF on `struct seccomp_data`."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, architecture or ARCHITECTURE[machine], 0, *padded)
    accumulator, at, program = 0, 0, call_filter(machine)
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            at += if_true if accumulator == operand else if_false
        else:
            assert code == 0x06
            return operand


@pytest.mark.parametrize("machine", NUMBERS)
def test_what_is_not_needed_is_refused(machine):
    for name, number in NUMBERS[machine].items():
        if name in FREE:
            assert decide(machine, number) == ALLOW, name
        elif name not in BY_ARGUMENTS:
            assert decide(machine, number) == REFUSE, name


@pytest.mark.parametrize("machine", NUMBERS)
def test_some_calls_are_allowed_with_some_arguments(machine):
    openat, fcntl, prlimit = (NUMBERS[machine][name] for name in ("openat", "fcntl", "prlimit64"))
    read_only, write_only, truncate, create, nameless = 0, 1, 0o1000, 0o100, 0o20000000
    assert decide(machine, openat, 5, 0, read_only) == ALLOW
    assert decide(machine, openat, 5, 0, write_only | create | truncate) == ALLOW
    assert decide(machine, openat, 5, 0, read_only | truncate) == REFUSE
    assert decide(machine, openat, 5, 0, read_only | truncate | create) == REFUSE
    assert decide(machine, openat, 5, 0, write_only | nameless) == REFUSE
    duplicate, set_owner, set_signal, set_flags = 1030, 8, 10, 4
    assert decide(machine, fcntl, 5, duplicate) == ALLOW
    assert {decide(machine, fcntl, 5, command) for command in (set_owner, set_signal, set_flags)} == {REFUSE}
    assert decide(machine, prlimit, 0, 7, 0, 1234) == ALLOW
    assert decide(machine, prlimit, 0, 7, 1234, 0) == REFUSE
    assert decide(machine, prlimit, 0, 7, 1234 << 32, 0) == REFUSE
    assert decide(machine, prlimit, 1, 7, 0, 1234) == REFUSE


@pytest.mark.parametrize("machine", NUMBERS)
def test_another_way_into_the_kernel_ends_the_process(machine):
    assert decide(machine, 1, architecture=I386) == KILL
    x32 = 0x40000000
    assert decide(machine, NUMBERS[machine]["read"] | x32) == REFUSE
