"""The only user of _ctypes: prototypes, errno, system call numbers by architecture, and the observer of calls.

Not a binding of anything in particular: what the calls mean is in process, mount, files. Source of truth: syscall(2), the
kernel's asm/unistd.h and CPython's C API for forking (PyOS_BeforeFork and its companions).

The package ctypes is a face for the C module _ctypes; what we need of it is some lines, and without it every tool starts
almost a millisecond earlier.
"""

from __future__ import annotations

import _ctypes as _module
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from typing import Any, Final

    Buffer = ctypes.Array[ctypes.c_char]

_c: Any = _module


def _simple(code: str) -> Any:
    """A C type, by its letter in struct and ctypes."""
    return type(f"c_{code}", (_c._SimpleCData,), {"_type_": code})  # noqa: SLF001 - as ctypes does


# One letter a type in our prototypes: the result first, then the arguments.
_TYPES: Final[dict[str, Any]] = {
    "v": None,
    "i": _simple("i"),
    "I": _simple("I"),
    "l": _simple("l"),
    "L": _simple("L"),
    "Q": _simple("Q"),
    "s": _simple("z"),
    "p": _simple("P"),
}
_Long: Final = _TYPES["l"]
_Char: Final = _simple("c")


def _function_type(flags: int) -> Any:
    """A type of C functions, made of `(name, library)` or an address."""
    flags |= _c.FUNCFLAG_CDECL | _c.FUNCFLAG_USE_ERRNO
    return type("Function", (_c.CFuncPtr,), {"_flags_": flags, "_restype_": _TYPES["i"]})


_Function: Final = _function_type(0)
# The interpreter's lock is kept during the call: the child of a clone must be born holding it.
_LockedFunction: Final = _function_type(_c.FUNCFLAG_PYTHONAPI)


class _Handle:
    """An open library (None: the process itself), in the shape that a function type wants."""

    def __init__(self, soname: str | None) -> None:
        self._handle = _c.dlopen(soname, 0)


_PROTOTYPES: Final = {
    "fchownat": "iisIIi",
    "mount": "isssLs",
    "personality": "iL",
    "prctl": "iiLLLL",
    "reboot": "ii",
    "setdomainname": "isL",
    "sethostname": "isL",
    "setns": "iii",
    "signal": "lip",  # SIG_ERR is -1
    "umount2": "isi",
    "unshare": "ii",
}

# From 424 on the numbers are the same on every architecture.
_COMMON: Final = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
_X86_64: Final = {
    "rt_sigprocmask": 14,
    "capget": 125,
    "capset": 126,
    "pivot_root": 155,
    "keyctl": 250,
    "signalfd4": 289,
    "prlimit64": 302,
    "seccomp": 317,
    "memfd_create": 319,
    "bpf": 321,
    "execveat": 322,
    **_COMMON,
}
_AARCH64: Final = {
    "pivot_root": 41,
    "signalfd4": 74,
    "capget": 90,
    "capset": 91,
    "rt_sigprocmask": 135,
    "keyctl": 219,
    "prlimit64": 261,
    "seccomp": 277,
    "memfd_create": 279,
    "bpf": 280,
    "execveat": 281,
    **_COMMON,
}
_TABLES: Final = {
    "x86_64": _X86_64,
    "i686": _X86_64,  # a 64-bit process that was started under personality(PER_LINUX32)
    "aarch64": _AARCH64,
    "armv8l": _AARCH64,
}
_MACHINE: Final = os.uname().machine
_NUMBERS: Final = _TABLES.get(_MACHINE, {}) if sys.maxsize > 2**32 else {}

observer: Callable[[str, tuple[object, ...]], None] | None = None
"""Sees every call before it is made; an OSError that it raises stands for the call's own failure (fault injection)."""


def entering(name: str, *args: object) -> None:
    """Tell the observer, if there is one, that a call is about to be made."""
    if observer is not None:
        observer(name, args)


def note(error: OSError, text: str, *filenames: str | None) -> None:
    """Add to an error the call as it was made, and up to two file names where it has none yet."""
    if error.filename is None and filenames:
        error.filename = filenames[0]
        if len(filenames) > 1:
            error.filename2 = filenames[1]
    error.add_note(text)


class Library:
    """Functions of a shared library (None: the process itself, so the C library) by a table of prototypes.

    A prototype is a string of type letters, the result first: i int, I unsigned, l long, L unsigned long, Q uint64_t,
    s bytes or None, p a buffer, an address or None, v nothing. Raises OSError when the library is not there.
    """

    def __init__(self, soname: str | None, prototypes: dict[str, str]) -> None:
        self._library = _Handle(soname)
        self._prototypes = prototypes
        self.resolved: dict[str, Callable[..., Any]] = {}

    def function(self, name: str) -> Callable[..., Any]:
        """The function of that name. Raises AttributeError when this version of the library lacks it."""
        found = self.resolved.get(name)
        if found is None:
            kinds = [_TYPES[letter] for letter in self._prototypes[name]]
            made = _Function((name, self._library))
            made.restype = kinds[0]
            made.argtypes = kinds[1:]
            found = self.resolved[name] = made
        return found


_libc = Library(None, _PROTOTYPES)
_here = _Handle(None)
_syscall = _Function(("syscall", _here))
_syscall.restype = _Long

_locked_syscall = _LockedFunction(("syscall", _here))
_locked_syscall.restype = _Long
before_fork: Callable[[], object] = _LockedFunction(("PyOS_BeforeFork", _here))
after_fork_parent: Callable[[], object] = _LockedFunction(("PyOS_AfterFork_Parent", _here))
after_fork_child: Callable[[], object] = _LockedFunction(("PyOS_AfterFork_Child", _here))


def errno_error(code: int) -> OSError:
    """The OSError (of the right subclass) for an errno."""
    return OSError(code, os.strerror(code))


def resolve() -> None:
    """Look all functions up, once: a child that did so would not hand on to the next child what it found."""
    if len(_libc.resolved) < len(_PROTOTYPES):
        for name in _PROTOTYPES:
            _libc.function(name)


def last_error() -> OSError:
    """The OSError for what the last call of a function() of ours left in errno."""
    return errno_error(_c.get_errno())


def function(name: str) -> Callable[..., int]:
    """A function of the C library by its prototype above, for many calls; it returns -1 where call() raises."""
    return _libc.function(name)


def call(name: str, *args: object) -> int:
    """Call a function of the C library by its prototype above. Raises OSError when it returns -1."""
    result: int = _libc.function(name)(*args)
    if result == -1:
        raise last_error()
    return result


def number(name: str) -> int:
    """The number of a system call here. Raises OSError(ENOSYS) on an architecture that we do not know."""
    try:
        return _NUMBERS[name]
    except KeyError:
        bits = 64 if sys.maxsize > 2**32 else 32
        text = f"system call {name} has no number for {_MACHINE} ({bits} bit)"
        raise OSError(errno.ENOSYS, text) from None


def syscall(name: str, *args: int | bytes | Buffer | None) -> int:
    """Make a system call that the C library has no function for. Raises OSError when it returns -1.

    Integers are passed as long, bytes and buffers by address, None as NULL.
    """
    # Variadic: each argument must have the width of a register by itself.
    words = [_Long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _syscall(_Long(number(name)), *words)
    if result == -1:
        raise errno_error(_c.get_errno())
    return result


def clone3(arguments: bytes) -> int:
    """Make the raw system call, holding the interpreter's lock: the pid, 0 in the child, or -errno. Raises nothing."""
    size = _Long(len(arguments))
    result: int = _locked_syscall(_Long(_NUMBERS["clone3"]), arguments, size)
    return -_c.get_errno() if result == -1 else result


# _ctypes forgets an array type together with its last instance, and to make one takes a fifth of a millisecond in a new child.
_ARRAYS: Final[dict[int, Any]] = {size: _Char * size for size in (4, 8, 16, 24)}


def buffer(content: int | bytes) -> Buffer:
    """Memory for the kernel to read or write: a number of zero bytes, or a copy of bytes without an end mark."""
    size = content if isinstance(content, int) else len(content)
    memory: Buffer = (_ARRAYS.get(size) or _Char * size)()
    if isinstance(content, bytes):
        memory.raw = content
    return memory


def address(memory: Buffer) -> int:
    """Where a buffer is. The buffer must be kept alive as long as the kernel may use it."""
    return int(_c.addressof(memory))


def poke(where: int, content: bytes) -> None:
    """Overwrite this process's memory."""
    move = _Function(_c._memmove_addr)  # noqa: SLF001 - as ctypes.memmove does
    move.restype, move.argtypes = _TYPES["p"], (_TYPES["p"], _TYPES["s"], _TYPES["L"])
    move(where, content, len(content))


def encode(text: str | None) -> bytes | None:
    """A path or option for the kernel: the file system's encoding. Raises ValueError for an embedded zero byte."""
    if text is None:
        return None
    if "\0" in text:
        raise ValueError(f"embedded zero byte in {text!r}")
    return os.fsencode(text)
