"""Device programs of cgroup2: an assembler for them, and bpf(2) to load, attach, replace and list them.

Not what a rule looks like in a configuration, nor which rules a container has: that is resources/cgroup/devices.py.
Sources of truth: bpf(2), the kernel's bpf/standardization/instruction-set.rst, linux/bpf.h (BPF_PROG_TYPE_CGROUP_DEVICE),
security/device_cgroup.c.
"""

from __future__ import annotations

import errno
import struct

from atoll.linux import libc
from atoll.linux.files import OwnedFd
from atoll.linux.libc import entering, note
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

# Commands of bpf(2).
BPF_PROG_LOAD: Final = 5
BPF_PROG_ATTACH: Final = 8
BPF_PROG_DETACH: Final = 9
BPF_PROG_QUERY: Final = 16

BPF_PROG_TYPE_CGROUP_DEVICE: Final = 15
BPF_CGROUP_DEVICE: Final = 6
BPF_F_ALLOW_MULTI: Final = 2
BPF_F_REPLACE: Final = 4

# struct bpf_cgroup_dev_ctx: access_type (what is asked << 16 | kind of node), major, minor.
BPF_DEVCG_DEV_BLOCK: Final = 1
BPF_DEVCG_DEV_CHAR: Final = 2
BPF_DEVCG_ACC_MKNOD: Final = 1
BPF_DEVCG_ACC_READ: Final = 2
BPF_DEVCG_ACC_WRITE: Final = 4
_KIND_AT: Final = 0
_MAJOR_AT: Final = 4
_MINOR_AT: Final = 8
ACCESS: Final = {"m": BPF_DEVCG_ACC_MKNOD, "r": BPF_DEVCG_ACC_READ, "w": BPF_DEVCG_ACC_WRITE}
KINDS: Final = {"b": BPF_DEVCG_DEV_BLOCK, "c": BPF_DEVCG_DEV_CHAR}
_ALL: Final = sum(ACCESS.values())
NUMBER_LIMIT: Final = 0x7FFFFFFF
"""Major and minor are compared as the signed 32 bits that an instruction holds; dev_t has 12 and 20."""

# Operation codes: class | source | operation.
LDX_W: Final = 0x61  # dst = *(u32 *)(src + off)
MOV_IMM: Final = 0xB7
AND_IMM: Final = 0x57
RSH_IMM: Final = 0x77
MOV_REG: Final = 0xBF
JA: Final = 0x05
JNE_IMM: Final = 0x55
JSET_IMM: Final = 0x45
EXIT: Final = 0x95
_CONTEXT, _KIND, _WANTED, _MAJOR, _MINOR = 1, 2, 3, 4, 5  # registers
_RESULT: Final = 0

_NAME: Final = b"atoll_devices"  # what bpftool shows
_LICENSE: Final = (
    b"Apache-2.0\0"  # no function of the kernel's is called, so it needs not be the kernel's
)
# The beginnings of union bpf_attr.
_LOAD: Final = struct.Struct("=IIQQIIQII16s")
_ATTACH: Final = struct.Struct("=IIIII")
_QUERY: Final = struct.Struct("=IIIIQI")
_LISTED: Final = 64  # the kernel takes no more programs for one cgroup and one purpose


class DeviceRule(Record):
    """What one rule says about devices: `kind` b, c or a (both); major and minor, None for any; `access` of r, w, m."""

    allow: bool
    kind: str
    major: int | None
    minor: int | None
    access: str


def instruction(code: int, *, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One struct bpf_insn in this machine's byte order. Raises struct.error for what does not fit."""
    import sys

    registers = src << 4 | dst if sys.byteorder == "little" else dst << 4 | src
    return struct.pack("=BBhi", code, registers, offset, value)


def device_program(rules: Iterable[DeviceRule], *, allow: bool) -> bytes:
    """The program that answers for a device: for each permission asked for, the last rule that speaks about it decides.

    A request is granted when all its permissions are; those that no rule speaks about are granted if `allow`. (v1's
    controller decides so too, by adding up rules for the same device; a test for a whole rule, as LXC has, would refuse
    read-write after one rule for r and one for w.)
    """
    text = instruction(LDX_W, dst=_KIND, src=_CONTEXT, offset=_KIND_AT)
    text += instruction(MOV_REG, dst=_WANTED, src=_KIND)
    text += instruction(AND_IMM, dst=_KIND, value=0xFFFF)
    text += instruction(RSH_IMM, dst=_WANTED, value=16)
    text += instruction(LDX_W, dst=_MAJOR, src=_CONTEXT, offset=_MAJOR_AT)
    text += instruction(LDX_W, dst=_MINOR, src=_CONTEXT, offset=_MINOR_AT)
    for rule in reversed(tuple(rules)):
        text += _rule(rule)
        if _is_total(rule):
            return text  # what would follow is out of reach, for which the kernel refuses a program
    return text + _answer(allow=allow)


def _is_total(rule: DeviceRule) -> bool:
    return (rule.kind, rule.major, rule.minor, _mask(rule)) == ("a", None, None, _ALL)


def _mask(rule: DeviceRule) -> int:
    return sum(ACCESS[letter] for letter in set(rule.access))


def _answer(*, allow: bool) -> bytes:
    return instruction(MOV_IMM, dst=_RESULT, value=int(allow)) + instruction(EXIT)


def _rule(rule: DeviceRule) -> bytes:
    """Code that decides what the rule speaks about and falls through for the rest; what is still wanted is in a register."""
    decide = _decide(rule)
    tests: list[tuple[int, int]] = []
    if rule.kind != "a":
        tests.append((_KIND, KINDS[rule.kind]))
    if rule.major is not None:
        tests.append((_MAJOR, rule.major))
    if rule.minor is not None:
        tests.append((_MINOR, rule.minor))
    text = b""
    for left, (register, value) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
        beyond = (
            left + len(decide) // 8
        )  # instructions to jump over: the other tests, then what is decided
        text += instruction(JNE_IMM, dst=register, offset=beyond, value=value)
    return text + decide


def _decide(rule: DeviceRule) -> bytes:
    mask = _mask(rule)
    answer = _answer(allow=rule.allow)
    if mask == _ALL:
        return answer
    beyond = len(answer) // 8
    if rule.allow:  # strike out what is granted; granted whole when nothing is left
        strike = instruction(AND_IMM, dst=_WANTED, value=_ALL & ~mask)
        return strike + instruction(JNE_IMM, dst=_WANTED, offset=beyond, value=0) + answer
    hit = instruction(JSET_IMM, dst=_WANTED, offset=1, value=mask)
    return hit + instruction(JA, offset=beyond) + answer


# ----------------------------------------------------------------------------------------- bpf(2)
def load_device_program(program: bytes) -> OwnedFd:
    """Give a program to the kernel, which verifies it. EPERM without CAP_BPF and CAP_NET_ADMIN over the machine. bpf(2)."""
    code = libc.buffer(program)
    license_ = libc.buffer(_LICENSE)
    count = len(program) // 8
    try:
        entering("bpf", "BPF_PROG_LOAD", count)
        attributes = _LOAD.pack(
            BPF_PROG_TYPE_CGROUP_DEVICE, count, libc.address(code), libc.address(license_), 0, 0, 0, 0, 0, _NAME
        )  # fmt: skip
        return OwnedFd(_bpf(BPF_PROG_LOAD, attributes))
    except OSError as error:
        what = f"prog_type=BPF_PROG_TYPE_CGROUP_DEVICE insn_cnt={count}"
        note(error, f"bpf(2): BPF_PROG_LOAD {what}")
        raise


def attach_device_program(cgroup: int, program: int) -> None:
    """Let a program decide about devices in a cgroup2 (a descriptor of its directory), besides others: all must allow."""
    _attach(cgroup, program, BPF_F_ALLOW_MULTI, 0)


def replace_device_program(cgroup: int, program: int, old: int) -> None:
    """Put a program in the place of another at once. Before Linux 5.6 both hold for a moment, which allows no more."""
    try:
        _attach(cgroup, program, BPF_F_ALLOW_MULTI | BPF_F_REPLACE, old)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _attach(cgroup, program, BPF_F_ALLOW_MULTI, 0)
        detach_device_program(cgroup, old)


def _attach(cgroup: int, program: int, flags: int, old: int) -> None:
    try:
        entering("bpf", "BPF_PROG_ATTACH", cgroup, program, flags, old)
        _bpf(BPF_PROG_ATTACH, _ATTACH.pack(cgroup, program, BPF_CGROUP_DEVICE, flags, old))
    except OSError as error:
        what = f"target_fd={cgroup} attach_bpf_fd={program} attach_type=BPF_CGROUP_DEVICE"
        note(error, f"bpf(2): BPF_PROG_ATTACH {what} attach_flags={flags:#x} replace_bpf_fd={old}")
        raise


def detach_device_program(cgroup: int, program: int) -> None:
    """Take a program off a cgroup2. bpf(2)."""
    try:
        entering("bpf", "BPF_PROG_DETACH", cgroup, program)
        _bpf(BPF_PROG_DETACH, _ATTACH.pack(cgroup, program, BPF_CGROUP_DEVICE, 0, 0))
    except OSError as error:
        note(error, f"bpf(2): BPF_PROG_DETACH target_fd={cgroup} attach_bpf_fd={program}")
        raise


def device_programs(cgroup: int) -> tuple[int, ...]:
    """The ids of the device programs of a cgroup2 itself, not those of its ancestors. bpf(2), BPF_PROG_QUERY."""
    ids = libc.buffer(4 * _LISTED)
    try:
        attributes = libc.buffer(
            _QUERY.pack(cgroup, BPF_CGROUP_DEVICE, 0, 0, libc.address(ids), _LISTED)
        )
        libc.syscall("bpf", BPF_PROG_QUERY, attributes, len(attributes))
    except OSError as error:
        note(error, f"bpf(2): BPF_PROG_QUERY target_fd={cgroup} attach_type=BPF_CGROUP_DEVICE")
        raise
    count: int = _QUERY.unpack(attributes.raw)[-1]
    return struct.unpack_from(f"={count}I", ids.raw)


def _bpf(command: int, attributes: bytes) -> int:
    return libc.syscall("bpf", command, libc.buffer(attributes), len(attributes))
