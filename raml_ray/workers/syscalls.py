"""The system calls that a program in the sandbox may not make, as the filter that the kernel runs before each (seccomp).

A second wall behind the namespaces, and three limits that nothing else gives: a program stays one process (so its
limits of memory and CPU time hold for all that it does), takes no memory that its address space does not count, and
cannot undo that it dies with its guard. Threads are allowed.
Source: linux/Documentation/userspace-api/seccomp_filter.rst; numbers from asm/unistd_64.h and asm-generic/unistd.h.
"""

import errno
import platform
import struct
from typing import NamedTuple

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16
"""Offsets in struct seccomp_data; of the first argument the lower half, on little-endian machines."""
CLONE_THREAD, PR_SET_PDEATHSIG = 0x10000, 1
X32 = 0x40000000
"""On x86-64, calls of another ABI have this bit."""

SAME_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "memfd_secret": 447,
}  # fmt: skip


class Machine(NamedTuple):
    """What differs from one processor to the other."""

    architecture: int
    """AUDIT_ARCH_…"""
    clone: int
    prctl: int
    forbidden: dict[str, int]


MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        56,
        157,
        {
            "fork": 57, "vfork": 58, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
            "socket": 41, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
            "name_to_handle_at": 303, "open_by_handle_at": 304, "add_key": 248, "request_key": 249, "keyctl": 250,
            "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "memfd_create": 319, "shmget": 29, "semget": 64,
            "msgget": 68, "mq_open": 240, "inotify_init": 253, "inotify_init1": 294, **SAME_EVERYWHERE,
        },
    ),
    "aarch64": Machine(
        0xC00000B7,
        220,
        167,
        {
            "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "socket": 198,
            "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
            "name_to_handle_at": 264, "open_by_handle_at": 265, "add_key": 217, "request_key": 218, "keyctl": 219,
            "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "memfd_create": 279, "shmget": 194, "semget": 190,
            "msgget": 186, "mq_open": 180, "inotify_init1": 26, **SAME_EVERYWHERE,
        },
    ),
}  # fmt: skip
CLONE3 = 435
"""Its flags lie in memory, where a filter cannot look: as if the kernel had none, so that C libraries fall back."""


def filter_for(machine: str = "") -> bytes:
    """The filter as the kernel's array of struct sock_filter, for this machine if none is named.

    Raises: ValueError for a processor whose numbers are not known here.
    """
    name = machine or platform.machine()
    if name not in MACHINES:
        raise ValueError(f"the sandbox knows the system calls of {' and '.join(MACHINES)}, not of {name}")
    known = MACHINES[name]
    denied = ERRNO | errno.EPERM
    steps = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, known.architecture),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if name == "x86_64":
        steps += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for number in known.forbidden.values():
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, denied)]
    steps += [
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
        (EQUAL, 0, 4, known.clone),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
        (ANY_BIT, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, denied),
        (RETURN, 0, 0, ALLOW),
        (EQUAL, 0, 3, known.prctl),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
        (EQUAL, 0, 1, PR_SET_PDEATHSIG),
        (RETURN, 0, 0, denied),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)
