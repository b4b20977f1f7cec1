"""A program of some hundred bytes that waits for descriptors and then executes another: the parked monitor.

Not about what is waited for, nor about what the other program does (lifecycle/park.py, docs/adr/0003-parked-monitor.md).
It is assembled here, byte by byte, because a process of an interpreter cannot be smaller than 2.5 MB and a compiler is not
at hand where we are installed. Sources: elf(5), execve(2), syscall(2), ppoll(2), stat(2), memfd_create(2); the kernel's
asm/stat.h; the instruction sets' manuals (Intel SDM volume 2, Arm ARM C6).

In C it would be:

    prctl(PR_SET_NAME, name);
    while (ppoll(fds, n, NULL, NULL) == -EINTR) ;
    command = commands;
    if (every mark is as it was) goto execute;
    for (;;) {
        pid = fork();                                     // try the interpreter with somebody who may fail
        if (pid == 0) { execve(command->path, command->trial, environment); exit(127); }
        if (pid > 0 && wait4(pid, &status, 0, NULL) >= 0 && status == 0)
    execute:
            execve(command->path, command->argv, environment);
        if (!(++command)->path) { command = commands; nanosleep(&pause, NULL); }
    }

It blocks no signal and handles none: the mask that it inherits is its user's business.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from atoll.linux.files import OwnedFd
from atoll.linux.libc import entering, note
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Final

BASE: Final = 0x400000
"""Where the program is in memory. Above vm.mmap_min_addr, and a multiple of every page size there is."""
LIMIT: Final = 1 << 20
"""Bytes that a program may have: every address of it fits into the 32 bits that the code loads."""
PAUSE_NS: Final = 1_000_000_000
"""Between two attempts when no command can be executed."""

_EXECUTABLE: Final = 2
_X86_64: Final = 62
_AARCH64: Final = 183
_LOAD: Final = 1
_GNU_STACK: Final = 0x6474E551
_READ_EXECUTE: Final = 5
_READ_WRITE: Final = 6
_PAGE: Final = 0x10000  # the largest page size of both
_ELF: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_HEADERS: Final = _ELF.size + 2 * _SEGMENT.size
_POLLFD: Final = struct.Struct("<ihh")
_MARK: Final = struct.Struct("<6Q")
_POLLIN: Final = 1

# The frame on the stack: status of the trial at 0, struct stat at 16, the pollfds behind it.
_STAT: Final = 16
_POLL: Final = _STAT + 144

_MFD_CLOEXEC: Final = 1
_MFD_ALLOW_SEALING: Final = 2
_MFD_EXEC: Final = 0x10
_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0xF  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE


class Mark(Record):
    """A file or directory as it was: when it is another one, or was changed, a trial is made before `argv` is executed.

    Inode, and modification and status change in seconds and nanoseconds.
    """

    path: str
    inode: int
    modified: tuple[int, int]
    changed: tuple[int, int]


class Command(Record):
    """A program to execute, and its arguments; and those with which a child tries it first: exit status 0 is success."""

    path: str
    argv: tuple[str, ...]
    trial: tuple[str, ...]


def mark(path: str) -> Mark:
    """How a file or directory is now. Raises OSError."""
    status = os.stat(path)
    return Mark(
        path=path,
        inode=status.st_ino,
        modified=divmod(status.st_mtime_ns, 1_000_000_000),
        changed=divmod(status.st_ctime_ns, 1_000_000_000),
    )


def program(
    machine: str,
    poll_fds: Sequence[int],
    commands: Sequence[Command],
    environment: Mapping[str, str],
    name: str,
    *,
    marks: Sequence[Mark] = (),
    pause_ns: int = PAUSE_NS,
) -> bytes:
    """The ELF file, pure: waits until one of `poll_fds` is readable or hung up, then executes the first command that works.

    `machine` is uname's; `name` is what ps shows in COMM (15 bytes); `pause_ns` is below two seconds' worth of nanoseconds.
    Raises ValueError for a machine without code here, and for what does not fit.
    """
    assemble = _MACHINES.get(machine)
    if assemble is None:
        raise ValueError(f"there is no waiting program for {machine}")
    if not poll_fds or not commands:
        raise ValueError("a program needs descriptors to wait for and a command")
    data = _Data()
    places = {
        "name": data.string(os.fsencode(name)[:15]),
        "environment": data.strings([f"{key}={value}" for key, value in environment.items()]),
        "commands": data.rows([_row(data, command) for command in commands]),
        "marks": data.rows([_mark_row(data, item) for item in marks]),
        "pause": data.words(*divmod(pause_ns, 1_000_000_000)),
        "fds": data.add(b"".join([_POLLFD.pack(fd, _POLLIN, 0) for fd in poll_fds])),
        "count": len(poll_fds),
        "frame": (_POLL + len(poll_fds) * _POLLFD.size + 15) & ~15,
    }
    data.align()
    code = assemble[1](places)
    start = BASE + _HEADERS + len(data.content)
    size = start - BASE + len(code)
    if size > LIMIT:
        raise ValueError(f"a waiting program of {size} bytes is too large")
    return _headers(assemble[0], start, size) + bytes(data.content) + code


def _row(data: _Data, command: Command) -> tuple[int, ...]:
    path = data.string(os.fsencode(command.path))
    return path, data.strings(command.argv), data.strings(command.trial)


def _mark_row(data: _Data, item: Mark) -> tuple[int, ...]:
    return data.string(os.fsencode(item.path)), item.inode, *item.modified, *item.changed


def _headers(machine: int, start: int, size: int) -> bytes:
    """The ELF header and two segments: everything, readable and executable; and a stack that is not executable."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bit, little endian, version 1, System V
    head = _ELF.pack(
        ident, _EXECUTABLE, machine, 1, start, _ELF.size, 0, 0, _ELF.size, _SEGMENT.size, 2, 0, 0, 0
    )  # fmt: skip
    whole = _SEGMENT.pack(_LOAD, _READ_EXECUTE, 0, BASE, BASE, size, size, _PAGE)
    stack = _SEGMENT.pack(_GNU_STACK, _READ_WRITE, 0, 0, 0, 0, 0, 16)
    return head + whole + stack


class _Data:
    """What the code points to, laid out behind the headers; everything that is added has its address at once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._known: dict[bytes, int] = {}

    def add(self, content: bytes) -> int:
        """Append; the address."""
        self.align()
        where = BASE + _HEADERS + len(self.content)
        self.content += content
        return where

    def align(self) -> None:
        """Fill up to a multiple of eight."""
        self.content += bytes(-len(self.content) % 8)

    def string(self, text: bytes) -> int:
        """A C string, once however often it is wanted. Raises ValueError for an embedded zero byte."""
        if b"\0" in text:
            raise ValueError(f"embedded zero byte in {text!r}")
        if text not in self._known:
            self._known[text] = self.add(text + b"\0")
        return self._known[text]

    def words(self, *values: int) -> int:
        """64-bit numbers."""
        return self.add(
            struct.pack(f"<{len(values)}Q", *[value & (1 << 64) - 1 for value in values])
        )

    def strings(self, texts: Sequence[str]) -> int:
        """What execve(2) takes: pointers to strings, and a null."""
        return self.words(*[self.string(os.fsencode(text)) for text in texts], 0)

    def rows(self, rows: Sequence[tuple[int, ...]]) -> int:
        """A table; a row that begins with a zero ends it."""
        return self.words(*[value for row in rows for value in row], 0)


class _Code:
    """Instructions and labels; jumps are filled in at the end."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self._labels[name] = len(self.content)

    def distances(self) -> list[tuple[int, int]]:
        """For each jump its place and how far behind it the target is, in bytes."""
        return [(place, self._labels[name] - place) for place, name in self._jumps]

    def jump(self, instruction: bytes, label: str) -> None:
        """A jump whose distance is filled in later."""
        self._jumps.append((len(self.content), label))
        self.content += instruction


# --------------------------------------------------------------------------------------- x86-64
class _Intel(_Code):
    def do(self, text: str, number: int | None = None) -> None:
        """An instruction in hexadecimal digits, and its 32-bit operand."""
        self.content += bytes.fromhex(text)
        if number is not None:
            self.content += struct.pack("<I", number & 0xFFFFFFFF)

    def to(self, text: str, label: str) -> None:
        """A jump with a 32-bit distance, counted from its end."""
        self.jump(bytes.fromhex(text) + bytes(4), label)

    def finish(self) -> bytes:
        """The bytes."""
        for place, distance in self.distances():
            length = 5 if self.content[place] == 0xE9 else 6  # jmp; the conditional ones are 0F xx
            struct.pack_into("<i", self.content, place + length - 4, distance - length)
        return bytes(self.content)


def _x86_64(places: Mapping[str, int]) -> bytes:
    """Number in rax, arguments in rdi rsi rdx r10; a call changes rax, rcx and r11. rbx: mark, r13: command."""
    code = _Intel()
    do, to, label = code.do, code.to, code.label
    do("48 81 ec", places["frame"])  # sub rsp, frame
    do("b8", 157)  # mov eax, prctl
    do("bf", 15)  # mov edi, PR_SET_NAME
    do("be", places["name"])  # mov esi, name
    do("0f 05")  # syscall
    do("be", places["fds"])  # mov esi, fds         copy the pollfds to where the kernel can write
    do("48 8d bc 24", _POLL)  # lea rdi, [rsp+poll]
    do("b9", places["count"])  # mov ecx, count
    do("f3 48 a5")  # rep movsq
    label("wait")
    do("b8", 271)  # mov eax, ppoll
    do("48 8d bc 24", _POLL)  # lea rdi, [rsp+poll]
    do("be", places["count"])  # mov esi, count
    do("31 d2")  # xor edx, edx         for ever
    do("45 31 d2")  # xor r10d, r10d       with the mask as it is
    do("0f 05")  # syscall
    do("48 83 f8 fc")  # cmp rax, -EINTR
    to("0f 84", "wait")  # je wait              any other error: let the interpreter find out
    do("41 bd", places["commands"])  # mov r13d, commands
    do("bb", places["marks"])  # mov ebx, marks
    label("mark")
    do("48 8b 33")  # mov rsi, [rbx]       path
    do("48 85 f6")  # test rsi, rsi
    to("0f 84", "execute")  # jz execute           all are as they were
    do("b8", 262)  # mov eax, newfstatat
    do("bf", -100)  # mov edi, AT_FDCWD
    do("48 8d 54 24 10")  # lea rdx, [rsp+16]    struct stat
    do("45 31 d2")  # xor r10d, r10d       no flags
    do("0f 05")  # syscall
    do("85 c0")  # test eax, eax
    to("0f 85", "try")  # jnz try
    do("48 8b 44 24 18")  # mov rax, [rsp+24]    st_ino
    do("48 3b 43 08")  # cmp rax, [rbx+8]
    to("0f 85", "try")  # jne try
    do("48 8d 74 24 68")  # lea rsi, [rsp+104]   st_mtime, st_ctime with their nanoseconds
    do("48 8d 7b 10")  # lea rdi, [rbx+16]
    do("b9", 4)  # mov ecx, 4
    do("f3 48 a7")  # repe cmpsq
    to("0f 85", "try")  # jne try
    do("48 83 c3 30")  # add rbx, 48          the next mark
    to("e9", "mark")  # jmp mark
    label("execute")
    do("b8", 59)  # mov eax, execve
    do("49 8b 7d 00")  # mov rdi, [r13]       path
    do("49 8b 75 08")  # mov rsi, [r13+8]     argv
    do("ba", places["environment"])  # mov edx, environment
    do("0f 05")  # syscall              comes back only when it failed
    label("next")
    do("49 83 c5 18")  # add r13, 24          the next command
    do("49 83 7d 00 00")  # cmp qword [r13], 0
    to("0f 85", "try")  # jne try
    do(
        "41 bd", places["commands"]
    )  # mov r13d, commands   all were tried: wait, and again from the first
    do("b8", 35)  # mov eax, nanosleep
    do("bf", places["pause"])  # mov edi, pause
    do("31 f6")  # xor esi, esi
    do("0f 05")  # syscall
    label("try")
    do("b8", 57)  # mov eax, fork
    do("0f 05")  # syscall
    do("85 c0")  # test eax, eax
    to("0f 84", "child")  # jz child
    to("0f 88", "next")  # js next              no process to be had
    do("89 c7")  # mov edi, eax
    do("b8", 61)  # mov eax, wait4
    do("48 89 e6")  # mov rsi, rsp         status
    do("31 d2")  # xor edx, edx
    do("45 31 d2")  # xor r10d, r10d
    do("0f 05")  # syscall
    do("85 c0")  # test eax, eax
    to("0f 88", "next")  # js next
    do("83 3c 24 00")  # cmp dword [rsp], 0   exited with 0
    to("0f 84", "execute")  # je execute
    to("e9", "next")  # jmp next
    label("child")
    do("b8", 59)  # mov eax, execve
    do("49 8b 7d 00")  # mov rdi, [r13]       path
    do("49 8b 75 10")  # mov rsi, [r13+16]    trial
    do("ba", places["environment"])  # mov edx, environment
    do("0f 05")  # syscall
    do("b8", 231)  # mov eax, exit_group
    do("bf", 127)  # mov edi, 127
    do("0f 05")  # syscall
    return code.finish()


# -------------------------------------------------------------------------------------- aarch64
class _Arm(_Code):
    def do(self, word: int) -> None:
        """An instruction."""
        self.content += struct.pack("<I", word)

    def load(self, register: int, number: int) -> None:
        """movz xN, the low 16 bits; movk xN, the high ones, lsl 16."""
        self.do(0xD2800000 | (number & 0xFFFF) << 5 | register)
        if number >> 16:
            self.do(0xF2A00000 | (number >> 16 & 0xFFFF) << 5 | register)

    def call(self, number: int) -> None:
        """mov x8, number; svc 0."""
        self.load(8, number)
        self.do(0xD4000001)

    def to(self, word: int, label: str) -> None:
        """A branch; the distance is counted in instructions from the branch itself."""
        self.jump(struct.pack("<I", word), label)

    def finish(self) -> bytes:
        """The bytes."""
        for place, distance in self.distances():
            (word,) = struct.unpack_from("<I", self.content, place)
            steps = distance // 4
            always = word >> 26 == 0x05  # b: 26 bits; b.cond, cbz, cbnz, tbnz: from bit 5 on
            if always:
                word |= steps & 0x3FFFFFF
            elif word >> 24 & 0x7F == 0x37:
                word |= (steps & 0x3FFF) << 5
            else:
                word |= (steps & 0x7FFFF) << 5
            struct.pack_into("<I", self.content, place, word)
        return bytes(self.content)


def _aarch64(places: Mapping[str, int]) -> bytes:
    """Number in x8, arguments from x0 on; a call changes x0. x19: mark, x20: command."""
    code = _Arm()
    do, to, load, call, label = code.do, code.to, code.load, code.call, code.label
    load(9, places["frame"])
    do(0xCB2963FF)  # sub sp, sp, x9
    load(0, 15)  # PR_SET_NAME
    load(1, places["name"])
    call(167)  # prctl
    load(9, places["fds"])  # copy the pollfds to where the kernel can write
    do(0x910283EA)  # add x10, sp, #160
    load(11, places["count"])
    label("copy")
    do(0xF840852C)  # ldr x12, [x9], #8
    do(0xF800854C)  # str x12, [x10], #8
    do(0xF100056B)  # subs x11, x11, #1
    to(0x54000001, "copy")  # b.ne copy
    label("wait")
    do(0x910283E0)  # add x0, sp, #160
    load(1, places["count"])
    load(2, 0)  # for ever
    load(3, 0)  # with the mask as it is
    call(73)  # ppoll
    do(0xB100101F)  # cmn x0, #4           -EINTR
    to(0x54000000, "wait")  # b.eq wait            any other error: let the interpreter find out
    load(20, places["commands"])
    load(19, places["marks"])
    label("mark")
    do(0xF9400261)  # ldr x1, [x19]        path
    to(0xB4000001, "execute")  # cbz x1, execute      all are as they were
    do(0x92800C60)  # mov x0, #-100        AT_FDCWD
    do(0x910043E2)  # add x2, sp, #16      struct stat
    load(3, 0)  # no flags
    call(79)  # newfstatat
    to(0xB5000000, "try")  # cbnz x0, try
    do(0xF9400FE9)  # ldr x9, [sp, #24]    st_ino
    do(0xF940066A)  # ldr x10, [x19, #8]
    do(0xEB0A013F)  # cmp x9, x10
    to(0x54000001, "try")  # b.ne try
    do(0x9101A3E9)  # add x9, sp, #104     st_mtime, st_ctime with their nanoseconds
    do(0x9100426A)  # add x10, x19, #16
    load(11, 4)
    label("compare")
    do(0xF840852C)  # ldr x12, [x9], #8
    do(0xF840854D)  # ldr x13, [x10], #8
    do(0xEB0D019F)  # cmp x12, x13
    to(0x54000001, "try")  # b.ne try
    do(0xF100056B)  # subs x11, x11, #1
    to(0x54000001, "compare")  # b.ne compare
    do(0x9100C273)  # add x19, x19, #48    the next mark
    to(0x14000000, "mark")  # b mark
    label("execute")
    do(0xA9400680)  # ldp x0, x1, [x20]    path, argv
    load(2, places["environment"])
    call(221)  # execve               comes back only when it failed
    label("next")
    do(0x91006294)  # add x20, x20, #24    the next command
    do(0xF9400280)  # ldr x0, [x20]
    to(0xB5000000, "try")  # cbnz x0, try
    load(20, places["commands"])  # all were tried: wait, and again from the first
    load(0, places["pause"])
    load(1, 0)
    call(101)  # nanosleep
    label("try")
    load(0, 17)  # SIGCHLD: fork
    load(1, 0)
    load(2, 0)
    load(3, 0)
    load(4, 0)
    call(220)  # clone
    to(0xB4000000, "child")  # cbz x0, child
    to(0xB7F80000, "next")  # tbnz x0, #63, next   no process to be had
    do(0x910003E1)  # mov x1, sp           status
    load(2, 0)
    load(3, 0)
    call(260)  # wait4
    to(0xB7F80000, "next")  # tbnz x0, #63, next
    do(0xB94003E9)  # ldr w9, [sp]
    to(0x34000009, "execute")  # cbz w9, execute      exited with 0
    to(0x14000000, "next")  # b next
    label("child")
    do(0xF9400280)  # ldr x0, [x20]        path
    do(0xF9400A81)  # ldr x1, [x20, #16]   trial
    load(2, places["environment"])
    call(221)  # execve
    load(0, 127)
    call(94)  # exit_group
    return code.finish()


_MACHINES: Final[dict[str, tuple[int, Callable[[Mapping[str, int]], bytes]]]] = {
    "x86_64": (_X86_64, _x86_64),
    "aarch64": (_AARCH64, _aarch64),
}
MACHINES: Final = tuple(_MACHINES)


# ------------------------------------------------------------------------------ from memory
def memory_file(name: str, content: bytes, *, executable: bool = False) -> OwnedFd:
    """A file without a name in any directory, close-on-exec; an executable one can be changed by nobody any more.

    memfd_create(2). Raises OSError: EACCES where the system forbids executing such files (vm.memfd_noexec).
    """
    flags = _MFD_CLOEXEC | (_MFD_ALLOW_SEALING | _MFD_EXEC if executable else 0)
    try:
        entering("memfd_create", name, flags)
        file = OwnedFd(_memfd_create(name, flags))
        left = memoryview(content)
        while left:
            left = left[os.write(file.fileno(), left) :]
        if executable:
            fcntl.fcntl(file.fileno(), _F_ADD_SEALS, _SEALS)
    except OSError as error:
        note(error, f"memfd_create(2): name={name!r} flags={flags:#x} size={len(content)}")
        raise
    return file


def _memfd_create(name: str, flags: int) -> int:
    try:
        return os.memfd_create(name, flags)
    except (
        OSError
    ) as error:  # before Linux 6.3 there is no MFD_EXEC, and everything can be executed
        if error.errno != errno.EINVAL or not flags & _MFD_EXEC:
            raise
    return os.memfd_create(name, flags & ~_MFD_EXEC)


def execute(content: bytes, argv: Sequence[str], *, keep: Sequence[int]) -> None:
    """Become a program that is in memory, with an empty environment. Raises OSError, and nothing has changed then.

    `keep`: descriptors that stay open in it and in what it executes; all others of ours are close-on-exec. execveat(2).
    """
    with memory_file("atoll-parked", content, executable=True) as file:
        for fd in keep:
            os.set_inheritable(fd, True)
        try:
            entering("execveat", argv[0])
            os.execve(file.fileno(), list(argv), {})
        except OSError as error:
            note(error, f"execveat(2): argv={list(argv)} flags=AT_EMPTY_PATH")
            raise
        finally:
            for fd in keep:
                os.set_inheritable(fd, False)
