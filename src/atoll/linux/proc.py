"""Parsers of the text of /proc and of the account files: pure functions from str to records.

Not a reader of files: the caller brings the text, read as UTF-8 with surrogateescape. They raise ValueError and nothing else.
Sources of truth: proc(5), cgroups(7), user_namespaces(7), subuid(5), passwd(5), group(5).

Lines end at newlines and fields at blanks only: str.splitlines and a bare str.split also cut at characters that the kernel
leaves as they are in a path.
"""

from __future__ import annotations

from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final


class MountInfo(Record):
    """A line of /proc/PID/mountinfo. `optional` are propagation tags ("shared:7", "master:2"); escapes are decoded."""

    id: int
    parent: int
    device: str
    """"MAJOR:MINOR"."""
    root: str
    """The directory within the file system that is mounted."""
    target: str
    options: str
    """Of this mount, comma separated."""
    optional: tuple[str, ...]
    fstype: str
    source: str
    super_options: str
    """Of the file system, comma separated."""


class CgroupLine(Record):
    """A line of /proc/PID/cgroup; `controllers` is empty for cgroup2."""

    id: int
    controllers: tuple[str, ...]
    path: str


class IdMapping(Record):
    """`count` ids from `inside` of a user namespace are those from `outside` in its parent. `kind` is "u" or "g"."""

    inside: int
    outside: int
    count: int
    kind: str = "u"


class User(Record):
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


class Group(Record):
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


_ESCAPE_DIGITS: Final = 3


def _number(text: str) -> int:
    """A decimal number without the sign, blanks, underscores and foreign digits that int() would take."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"not a number: {text!r}")
    return int(text)


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def _words(line: str) -> list[str]:
    return [word for word in line.replace("\t", " ").split(" ") if word]


def unescape(text: str) -> str:
    r"""Decode the \ooo escapes of mountinfo and fstab; a backslash before anything else stays."""
    if "\\" not in text:
        return text
    first, *rest = text.split("\\")
    decoded = [first]
    for part in rest:
        digits = part[:_ESCAPE_DIGITS]
        octal = len(digits) == _ESCAPE_DIGITS and all(digit in "01234567" for digit in digits)
        if octal and int(digits, 8) < 128:
            decoded.append(chr(int(digits, 8)) + part[_ESCAPE_DIGITS:])
        else:
            decoded.append("\\" + part)
    return "".join(decoded)


def parse_mountinfo(text: str) -> tuple[MountInfo, ...]:
    """The mounts of /proc/PID/mountinfo, in its order: a later one at the same target hides an earlier one."""
    return tuple(_parse_mount(line) for line in _lines(text))


def _parse_mount(line: str) -> MountInfo:
    fields = line.split(" ")  # an empty source is an empty field: do not drop those
    try:
        end = fields.index("-", 6)
        fstype, source, super_options = fields[end + 1 : end + 4]
    except ValueError:
        raise ValueError(f"not a line of mountinfo: {line!r}") from None
    return MountInfo(
        id=_number(fields[0]),
        parent=_number(fields[1]),
        device=fields[2],
        root=unescape(fields[3]),
        target=unescape(fields[4]),
        options=fields[5],
        optional=tuple(fields[6:end]),
        fstype=unescape(fstype),
        source=unescape(source),
        super_options=unescape(super_options),
    )


def parse_places(text: str) -> tuple[tuple[str, str, str], ...]:
    """Target, type and the file system's own options of each line of mountinfo, in its order.

    Every start reads them, and this costs a fifth of parse_mountinfo. What is no line of mountinfo is left out.
    """
    found: list[tuple[str, str, str]] = []
    for line in text.split("\n"):
        front, _dash, back = line.partition(" - ")
        fields, more = front.split(" ", 5), back.split(" ")
        if len(fields) == 6 and len(more) == 3:
            found.append((unescape(fields[4]), unescape(more[0]), unescape(more[2])))
    return tuple(found)


def parse_cgroup_paths(text: str) -> dict[tuple[str, ...], str]:
    """The paths of /proc/PID/cgroup by v1 controllers, () for cgroup2; a line that is none is left out."""
    found: dict[tuple[str, ...], str] = {}
    for line in text.split("\n"):
        _number, _colon, rest = line.partition(":")
        controllers, _colon, path = rest.partition(":")
        if path.startswith("/"):
            found[tuple(controllers.split(",")) if controllers else ()] = path
    return found


def parse_cgroups(text: str) -> tuple[CgroupLine, ...]:
    """The lines of /proc/PID/cgroup, in its order."""
    found: list[CgroupLine] = []
    for line in _lines(text):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not path.startswith("/"):
            raise ValueError(f"not a line of /proc/PID/cgroup: {line!r}")
        names = tuple(controllers.split(",")) if controllers else ()
        found.append(CgroupLine(id=_number(number), controllers=names, path=path))
    return tuple(found)


def parse_status(text: str) -> dict[str, str]:
    """The values of /proc/PID/status by key, without the blanks around them."""
    values: dict[str, str] = {}
    for line in _lines(text):
        key, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"not a line of /proc/PID/status: {line!r}")
        values[key] = value.strip(" \t")
    return values


def parse_cap_mask(text: str) -> int:
    """A capability mask as /proc/PID/status has it ("000001ffffffffff"), as an integer."""
    digits = text.strip(" \t\n")
    if not digits or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError(f"not a capability mask: {text!r}")
    return int(digits, 16)


def _stat_fields(text: str) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the name before them may hold blanks and parentheses."""
    return _words(text.rstrip("\n").rpartition(")")[2])


def parse_stat_starttime(text: str) -> int:
    """The start time in /proc/PID/stat, in clock ticks since boot: with the pid it names a process for ever."""
    fields = _stat_fields(text)
    if len(fields) < 20:
        raise ValueError(f"not the text of /proc/PID/stat: {text[:80]!r}")
    return _number(fields[19])


def parse_id_map(text: str, kind: str = "u") -> tuple[IdMapping, ...]:
    """The ranges of /proc/PID/uid_map (`kind` "u") or gid_map ("g")."""
    found: list[IdMapping] = []
    for line in _lines(text):
        words = _words(line)
        if len(words) != 3:
            raise ValueError(f"not a line of an id map: {line!r}")
        inside, outside, count = (_number(word) for word in words)
        found.append(IdMapping(inside=inside, outside=outside, count=count, kind=kind))
    return tuple(found)


def parse_subids(text: str, names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """First id and count of the ranges that /etc/subuid or subgid gives to one of `names` (a login name or its number).

    Lines that are none are left out, as newuidmap(1) leaves them out.
    """
    found: list[tuple[int, int]] = []
    for line in _lines(text):
        fields = line.strip(" \t").split(":")
        if len(fields) != 3 or fields[0] not in names:
            continue
        try:
            found.append((_number(fields[1]), _number(fields[2])))
        except ValueError:
            continue
    return tuple(found)


def parse_passwd(text: str) -> tuple[User, ...]:
    """The users of /etc/passwd; lines that are none (comments, NIS) are left out. The text may be a container's."""
    found: list[User] = []
    for line in _lines(text):
        fields = line.split(":")
        if len(fields) != 7 or not fields[0]:
            continue
        name, _, uid, gid, _, home, shell = fields
        try:
            ids = _number(uid), _number(gid)
        except ValueError:
            continue
        found.append(User(name=name, uid=ids[0], gid=ids[1], home=home, shell=shell))
    return tuple(found)


def parse_group(text: str) -> tuple[Group, ...]:
    """The groups of /etc/group; lines that are none (comments, NIS) are left out. The text may be a container's."""
    found: list[Group] = []
    for line in _lines(text):
        fields = line.split(":")
        if len(fields) != 4 or not fields[0]:
            continue
        try:
            gid = _number(fields[2])
        except ValueError:
            continue
        members = tuple(member for member in fields[3].split(",") if member)
        found.append(Group(name=fields[0], gid=gid, members=members))
    return tuple(found)


def parse_unix_sockets(text: str) -> tuple[str, ...]:
    """The abstract names in /proc/net/unix, each once, with "@" for each zero byte: "@/var/lib/lxc/c1/command"."""
    names: dict[str, None] = {}
    for line in text.split("\n")[1:]:
        rest = line
        for _ in range(7):
            rest = rest.lstrip(" ").partition(" ")[2]
        if rest.startswith("@"):
            names[rest] = None
    return tuple(names)


def parse_filesystems(text: str) -> frozenset[str]:
    """The names in /proc/filesystems."""
    return frozenset(line.rpartition("\t")[2].strip(" ") for line in _lines(text)) - {""}
