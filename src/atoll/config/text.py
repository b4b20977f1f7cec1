"""Config: a container's configuration as it was read, with the place of every value; includes, changes, writing back.

It knows the grammar and no key's meaning: keys.py has the declarations, owners.py finds them. It writes no file: save
`text()` with files.atomic_write. Source: reference of LXC, sections 2.1, 2.4 and 2.5; lxc.container.conf(5).

Bytes that are not UTF-8 survive reading and writing (surrogateescape). Differences from LXC, on purpose: entries of an
included directory are read in sorted order; truly empty lines are kept on save; old key names are accepted with a warning.
"""

from __future__ import annotations

import os
import stat

from atoll.config import owners
from atoll.config.keys import WHITE, Many, Pairs, Section, build
from atoll.errors import ConfigError, Origin, reason
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import TypeVar

    from atoll.config.keys import State
    from atoll.config.owners import Target
    from atoll.host import Host

    S = TypeVar("S", bound=Section)

INCLUDE = "lxc.include"
FILE_LIMIT = 16 << 20
"""Bytes that one configuration file may have: a device or an endless pipe is not a configuration."""
INCLUDE_LIMIT = 1000
"""Files that one configuration may read in all; without it twenty small files can include each other a million times."""
DEPTH_LIMIT = 64
NAME_WORDS = 6
"""Words that the name of a key has at most: lxc.cgroup.dir.container.inner has five."""
LONG = 400
"""Characters of a path, a reason or a line that a message has at most."""
PROBLEM_LIMIT = 100
"""Problems that are collected; the next one is raised."""


class Assignment(Record):
    """One `key = value` line: the present name of the key, the value without quotes, and where it stands."""

    key: str
    value: str
    origin: Origin


class LegacyName(Record):
    """A line that uses a name from before LXC 3. `new` is None where the key has no successor and no effect."""

    origin: Origin
    old: str
    new: str | None

    def __str__(self) -> str:
        if self.new is None:
            return f"{self.origin}: {self.old} is an old key without effect"
        return f"{self.origin}: {self.old} is the old name of {self.new}"


class Config:
    """A configuration: `config[Console].path`. It does not change; set, clear and define give a new one.

    `file`: what it was read from, None for an empty one. `assignments`: all of them in order, those of included files
    too. `warnings`: lines with old names.
    """

    __slots__ = ("_lines", "_names", "_sections", "_states", "assignments", "file", "warnings")

    file: str | None
    assignments: tuple[Assignment, ...]
    warnings: tuple[LegacyName, ...]

    def __init__(self, reader: _Reader) -> None:
        """Internal: use read, parse or empty."""
        self.file = reader.file
        self.assignments = tuple(reader.assignments)
        self.warnings = tuple(reader.warnings)
        self._lines = tuple(reader.lines)
        self._states = reader.states
        self._sections: dict[type[Section], Section] = {}
        self._names: set[str] = set()

    # -- making one
    @classmethod
    def read(cls, path: str, *, problems: list[ConfigError] | None = None) -> Config:
        """The configuration in a file. Raises ConfigError for the first problem, with its line.

        With `problems`, the lines that cannot be used are left out and their errors are added to it, the first hundred,
        instead; a file that cannot be read at all is raised.
        """
        reader = _Reader(path, problems)
        reader.read_file(path, None)
        return cls(reader)

    @classmethod
    def parse(
        cls, text: str, *, file: str = "config", problems: list[ConfigError] | None = None
    ) -> Config:
        """The configuration in a text; `file` is the name that positions get. `problems`: as in read."""
        reader = _Reader(file, problems)
        reader.read_text(text, file)
        return cls(reader)

    @classmethod
    def empty(cls) -> Config:
        """Defaults only."""
        return cls(_Reader(None, None))

    def define(self, text: str, origin_file: str = "-s") -> Config:
        """With one more `lxc.key = value`, as tools take it after -s; not part of what text() writes back."""
        reader = self._reader()
        reader.define(text, origin_file)
        return Config(reader)

    def set(self, key: str, value: str) -> Config:
        """With the key set as the API does: a list gets another item, anything else is replaced; saved by text()."""
        value = value.strip(WHITE)
        if any(c in key or c in value for c in "\n\r\0"):
            raise ConfigError(
                f"cannot set {_short(key)}: a value is one line without NUL bytes", key=key
            )
        value = _complete(key, value)
        line = f"{key} = {value}".rstrip(WHITE)
        origin = Origin(file=self.file or "API", line=0, text=line)
        reader = (
            self._reader()
            if key == INCLUDE or (value and _appends(_target(key)))
            else self._without(key)
        )
        reader.take(key, value, origin)
        reader.lines.append((line, key))
        return Config(reader)

    def clear(self, key: str) -> Config:
        """Without the key: its lines go. `lxc.net`, `lxc.net.0`, `lxc.hook`, `lxc.sysctl` take what is below along."""
        reader = self._without(key)
        included = [a for a in self.assignments if a.origin.line and a.origin.file != self.file]
        if any(covers(key, assignment.key) for assignment in included):
            # An included file sets it, now and at the next load.
            reader.lines.append((f"{key} =", key))
        return Config(reader)

    @property
    def lines(self) -> tuple[tuple[str, str | None], ...]:
        """What text() writes, line by line, each with the present name of its key; None: no key, or not usable."""
        return self._lines

    def omit(self, origins: Collection[Origin]) -> Config:
        """Without what these lines set, and without lines that are no use without them; text() stays as it is."""
        reader = _Reader(self.file, None)
        reader.lines = list(self._lines)
        reader.warnings = list(self.warnings)
        for assignment in self.assignments:
            if assignment.origin in origins:
                continue
            try:
                reader.assign(assignment.key, assignment.value, assignment.origin)
            except ConfigError:
                continue
        return Config(reader)

    def _reader(self) -> _Reader:
        reader = _Reader(self.file, None)
        reader.lines = list(self._lines)
        reader.warnings = list(self.warnings)
        for assignment in self.assignments:
            reader.assign(assignment.key, assignment.value, assignment.origin)
        return reader

    def _without(self, key: str) -> _Reader:
        """What was read, but for the key; lxc.net.N.type takes all of its nic along, as assigning it does."""
        target = _target(key)
        if target.key is not None and target.key.resets:
            key = key.rpartition(".")[0]
        reader = _Reader(self.file, None)
        reader.lines = [pair for pair in self._lines if pair[1] is None or not covers(key, pair[1])]
        reader.warnings = list(self.warnings)
        for assignment in self.assignments:
            if not covers(key, assignment.key):
                reader.assign(assignment.key, assignment.value, assignment.origin)
        return reader

    # -- asking
    def __getitem__(self, section: type[S]) -> S:
        """The section's values; its defaults where the configuration says nothing."""
        found = self._sections.get(section)
        if found is None:
            found = self._sections[section] = build(section, self._states.get(section, {}))
        return found  # type: ignore[return-value]  # the table maps a class to its instance

    def origin(self, key: str) -> Origin | None:
        """Where the key got its present value, of a list its last item; None when it has its default."""
        found = self.origins(key)
        return found[-1] if found else None

    def origins(self, key: str) -> tuple[Origin, ...]:
        """For each item of a list or of pairs its line, parallel to the items; of `lxc.net.0` all of its lines."""
        if not self.mentions(key.removesuffix(".*")):
            return ()
        target = owners.find(key)
        if target is None:
            return ()
        state = self._state(target)
        if target.key is not None:
            return tuple([origin for _item, origin in target.key.items(state, target.sub)])
        states = [state]
        if target.numbered is not None and target.index < 0:
            states = list(state.get(target.numbered.field, {}).values())
        declared = (target.numbered.item if target.numbered else target.section).section_keys
        return tuple(
            [
                origin
                for one in states
                for field in one
                for _item, origin in declared[field].items(one)
            ]
        )

    def mentions(self, name: str) -> bool:
        """Does a line assign this key, or one below it (lxc.hook, lxc.net.0)? It may have been cleared again."""
        if not self._names and self.assignments:
            for key in {assignment.key for assignment in self.assignments}:
                words = key.split(".", NAME_WORDS)  # a sub-key may have a million dots
                for count in range(1, min(len(words), NAME_WORDS) + 1):
                    self._names.add(".".join(words[:count]))
                self._names.add(key)
        return name in self._names

    def get(self, key: str) -> str:
        """The value as LXC's getter prints it; empty when unset. ConfigError for a name without a value."""
        target = _target(key)
        if target.key is None or key == INCLUDE:
            return self._get_all(key, target)
        state = self._state(target)
        if target.numbered is not None and not self._has(target):
            raise ConfigError(f"cannot get {key}: there is no {key.rpartition('.')[0]}", key=key)
        if not target.key.fits(state):
            raise ConfigError(f"cannot get {key}: it means nothing for this type", key=key)
        return target.key.get(state, target.sub)

    def _get_all(self, key: str, target: Target) -> str:
        shown = target.numbered.shown if target.numbered and target.index < 0 else None
        if shown is None or target.numbered is None:
            raise ConfigError(f"cannot get {key}: it has no value of its own", key=key)
        return shown(target.numbered.value(self._states.get(target.section, {})))

    def keys(self, prefix: str | None = None) -> tuple[str, ...]:
        """Every key's name; or with `lxc.net.0`, `lxc.rootfs`, … what follows the prefix in the names below it.

        Of a numbered section those that mean something for its type. Imports every resource module (or those needed).
        """
        if prefix is None:
            return tuple(name.removesuffix(".*") for name in owners.names() if ".N." not in name)
        target = owners.find(prefix)
        if target is not None and target.numbered is not None and target.index >= 0:
            if not self._has(target):
                return ()
            state = self._state(target)
            declared = target.numbered.item.section_keys.values()
            start = len(target.numbered.name) + len(".N.")
            return tuple(key.name[start:] for key in declared if key.fits(state))
        below = [name[len(prefix) + 1 :].removesuffix("*") for name in owners.names_below(prefix)]
        return tuple(name.removesuffix(".") for name in below if name and not name.startswith("N."))

    def later(self, host: Host | None = None) -> tuple[tuple[str, str, Origin], ...]:
        """(key, part of the project, origin) for each set key whose effect is still to come, on this host if given."""
        found = {}
        for assignment in self.assignments:
            target = owners.find(assignment.key)
            key = target.key if target else None
            if target is None or key is None or key.later is None:
                continue
            if host is not None and key.later_on is not None and not key.later_on(host):
                continue
            items = key.items(self._state(target), target.sub)
            if key.later_for is not None:
                items = [pair for pair in items if key.later_for(pair[0])]
            if items:
                found[assignment.key] = (assignment.key, key.later, items[-1][1])
        return tuple(found.values())

    def text(self) -> str:
        """What to save: the file's own lines with comments and order, its include lines as they are, and changes."""
        return "".join([f"{line}\n" for line, _key in self._lines])

    def _state(self, target: Target) -> State:
        state = self._states.get(target.section, {})
        if target.numbered is not None and target.index >= 0:
            found: State = state.get(target.numbered.field, {}).get(target.index, {})
            return found
        return state

    def _has(self, target: Target) -> bool:
        held = self._states.get(target.section, {}).get(target.numbered.field, {})  # type: ignore[union-attr]  # asked for numbered targets only
        return target.index in held


class _Reader:
    """Reads lines and folds them: the only thing that changes, and only until its Config is made."""

    def __init__(self, file: str | None, problems: list[ConfigError] | None) -> None:
        self.file = file
        self.problems = problems
        self.assignments: list[Assignment] = []
        self.lines: list[tuple[str, str | None]] = []
        self.warnings: list[LegacyName] = []
        self.states: dict[type[Section], State] = {}
        self._chain: list[tuple[str, tuple[int, int]]] = []
        self._files = 0
        self._network = -1  # number of the last nic that a sequential lxc.network.type opened
        self._backend = ""
        self._old_rootfs = ""

    # -- files
    def read_file(self, path: str, included: Origin | None) -> None:
        """Read a file: the top-level one, or one that the line at `included` includes."""
        try:
            data, identity = load(path)
            if b"\0" in data:
                raise ValueError(
                    f"it is not text, line {data[: data.index(0)].count(10) + 1} has a NUL byte"
                )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read the configuration {_short(path, LONG)}: {_why(error)}", key=INCLUDE if included else None,
                origin=included, fix=_permission(path) if isinstance(error, PermissionError) else None,
            ) from error  # fmt: skip
        names = [name for name, _identity in self._chain]
        if any(identity == other for _name, other in self._chain):
            chain = " includes ".join([*names, path])
            raise ConfigError(
                f"cannot include {path}: it includes itself ({chain})", key=INCLUDE, origin=included
            )
        self._files += 1
        if self._files > INCLUDE_LIMIT or len(names) > DEPTH_LIMIT:
            raise ConfigError(
                f"cannot include {path}: more than {INCLUDE_LIMIT} files, or nested deeper than {DEPTH_LIMIT}",
                key=INCLUDE, origin=included,
            )  # fmt: skip
        self._chain.append((path, identity))
        try:
            self.read_text(data.decode("utf-8", "surrogateescape"), path, top=included is None)
        finally:
            self._chain.pop()

    def _include(self, path: str, origin: Origin) -> None:
        try:
            entries = os.listdir(path) if path.endswith("/") or os.path.isdir(path) else None
        except FileNotFoundError:
            return  # a directory for drop-ins need not exist
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read the directory {_short(path, LONG)}: {_why(error)}",
                key=INCLUDE,
                origin=origin,
            ) from error
        if entries is None:
            self.read_file(path, origin)
            return
        for name in sorted(entries):
            if len(name) >= len("x.conf") and name.endswith(".conf"):
                self.read_file(f"{path.rstrip('/')}/{name}", origin)

    # -- lines
    def read_text(self, text: str, file: str, *, top: bool = True) -> None:
        """Take in every line of a text."""
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, 1):
            stripped = line.strip(WHITE)
            key = None
            if stripped.startswith("lxc."):
                try:
                    key, line = self._line(stripped, line, file, number)  # noqa: PLW2901 - its MAC was completed
                except ConfigError as error:
                    if self.problems is None or len(self.problems) >= PROBLEM_LIMIT:
                        raise
                    self.problems.append(error)
            if top:
                self.lines.append((line, key))

    def _line(self, stripped: str, line: str, file: str, number: int) -> tuple[str | None, str]:
        """Take in one `lxc.` line; its present key, and the line as it is to be saved."""
        origin = Origin(file=file, line=number, text=_short(stripped, LONG))
        name, equals, rest = stripped.partition("=")
        name = name.rstrip(WHITE)
        if not equals:
            raise ConfigError(f"cannot use the line {_short(stripped)}: it has no =", origin=origin)
        value = unquoted(rest.lstrip(WHITE))
        if "\0" in stripped:
            raise ConfigError(
                f"cannot set {_short(name)}: there is a NUL byte in the line",
                key=name,
                origin=origin,
            )
        completed = _complete(name, value)
        if completed != value:
            head, _equals, tail = line.partition("=")
            line = f"{head}={tail.replace(value, completed)}"
            origin = origin.replace(text=line.strip(WHITE))
        return self.take(name, completed, origin), line

    def define(self, text: str, file: str) -> None:
        """Take in the one line of -s."""
        stripped = text.strip(WHITE)
        if not stripped.startswith("lxc.") or "\n" in stripped or "\r" in stripped:
            raise ConfigError(
                f"cannot use {file} {_short(stripped)}: it is not of the form lxc.KEY=VALUE",
                origin=Origin(file=file, line=0, text=stripped),
            )
        self._line(stripped, stripped, file, 0)

    # -- names
    def take(self, name: str, value: str, origin: Origin) -> str | None:
        """Assign, under the present name when `name` is an old one; gives the present name."""
        if name == INCLUDE:
            if value:
                self._include(value, origin)
            return name
        if name in owners.LEGACY or name.startswith(("lxc.network.", "lxc.limit.")):
            return self._legacy(name, value, origin)
        if name == "lxc.rootfs.path":
            self._old_rootfs = ""  # a lxc.rootfs.backend further down is not about this one
        self.assign(name, value, origin)
        return name

    def _legacy(self, old: str, value: str, origin: Origin) -> str | None:
        if old == "lxc.rootfs.backend":
            return self._rootfs_backend(value, origin)
        if old.startswith("lxc.network."):
            new: str | None = self._network_name(old, origin)
        elif old.startswith("lxc.limit."):
            new = "lxc.prlimit." + old.removeprefix("lxc.limit.")
        else:
            new = owners.LEGACY[old]
        if new is not None:
            if new == "lxc.rootfs.path":
                self._old_rootfs = value
                value = self._with_backend(value)
            self.assign(new, value, origin)
        self.warnings.append(LegacyName(origin=origin, old=old, new=new))
        return new

    def _network_name(self, old: str, origin: Origin) -> str:
        """lxc.net.N.x for lxc.network.x, where each `type` line opens the next N; or for lxc.network.N.x."""
        rest = old.removeprefix("lxc.network.")
        number, _dot, sub = rest.partition(".")
        if number.isascii() and number.isdigit():
            sub = owners.LEGACY_NETWORK.get(sub, sub)
            return f"lxc.net.{number}.{sub}".rstrip(".")
        if rest == "type":
            self._network += 1
        elif self._network < 0:
            raise ConfigError(
                f"cannot use {old}: no lxc.network.type comes before it", key=old, origin=origin
            )
        return f"lxc.net.{self._network}.{owners.LEGACY_NETWORK.get(rest, rest)}"

    def _rootfs_backend(self, value: str, origin: Origin) -> str:
        """lxc.rootfs.backend = TYPE says what lxc.rootfs, before or after it, is: lxc.rootfs.path = TYPE:PATH."""
        new = "lxc.rootfs.path"
        self._backend = value
        self.warnings.append(LegacyName(origin=origin, old="lxc.rootfs.backend", new=new))
        if self._old_rootfs:
            self.assign(new, self._with_backend(self._old_rootfs), origin)
        return new

    def _with_backend(self, path: str) -> str:
        return f"{self._backend}:{path}" if self._backend and path and ":" not in path else path

    # -- folding
    def assign(self, name: str, value: str, origin: Origin) -> None:
        """Take in one assignment under its present name; ConfigError when the key or the value cannot be used."""
        target = _target(name, origin)
        state = self.states.setdefault(target.section, {})
        try:
            if target.numbered is not None:
                _assign_numbered(target, state, value, origin)
            elif target.key is not None:
                target.key.assign(state, value, origin, target.sub)
            else:
                _no_value(value)
                state.clear()
        except ValueError as error:
            shown = f"{name} = {value}" if value else f"{name} to nothing"
            raise ConfigError(
                f"cannot set {_short(shown)}: {_short(str(error), LONG)}", key=name, origin=origin
            ) from error
        self.assignments.append(Assignment(key=name, value=value, origin=origin))


def _assign_numbered(target: Target, state: State, value: str, origin: Origin) -> None:
    """lxc.net.N.x = value, or what only clears: `lxc.net.N =`, `lxc.net =`."""
    field = target.numbered.field if target.numbered else ""
    if target.key is None:
        _no_value(value)
        if target.index < 0:
            state.pop(field, None)
        else:
            state.get(field, {}).pop(target.index, None)
        return
    held = state.setdefault(field, {})
    if not value and target.index not in held:
        return  # there is nothing to clear, and nothing to make
    one: State = held.get(target.index, {})
    target.key.assign(one, value, origin)
    held[target.index] = one


def _no_value(value: str) -> None:
    if value:
        raise ValueError("it takes no value; empty, it clears the keys below it")


def _target(name: str, origin: Origin | None = None) -> Target:
    found = owners.find(name)
    if found is not None:
        return found
    near = owners.nearest(name)
    raise ConfigError(
        f"unknown key {_short(name)}",
        key=name,
        origin=origin,
        fix=f"the nearest known {'key is' if len(near) == 1 else 'keys are'} {', '.join(near)}"
        if near
        else None,
    )


def _appends(target: Target) -> bool:
    """Whether assigning adds to what is there: a list, or pairs of which a sub-key may come twice."""
    kind = target.key.kind if target.key else None
    return isinstance(kind, Many) or (isinstance(kind, Pairs) and not kind.unique)


def covers(cleared: str, key: str) -> bool:
    """Whether clearing the one name takes the other along: itself, or what is below `lxc.net`, `lxc.hook`."""
    if cleared == key:
        return True
    if not key.startswith(f"{cleared}."):
        return False
    target = owners.find(cleared)
    return target is not None and (target.key is None or isinstance(target.key.kind, Pairs))


def unquoted(value: str) -> str:
    """A value without the quotes around it, if it has a pair."""
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        return value[1:-1]
    return value


def _complete(key: str, value: str) -> str:
    """A hardware address with a random hexadecimal digit for every x, so that a save keeps it; never a multicast one."""
    if (
        not key.endswith(".hwaddr")
        or len(value) > len("00:16:3e:xx:xx:xx")
        or "x" not in value.lower()
    ):
        return value
    digits = os.urandom(len(value))
    return "".join(
        [
            (f"{digit & (0xE if place == 1 else 0xF):x}" if c in "xX" else c)
            for place, (c, digit) in enumerate(zip(value, digits, strict=True))
        ]
    )


def load(path: str) -> tuple[bytes, tuple[int, int]]:
    """A file's bytes and identity (device, inode). Pipes are fine: -f <(…)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(21, "Is a directory")
        chunks = []
        left = FILE_LIMIT + 1
        while left > 0 and (chunk := os.read(fd, min(left, 1 << 16))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    if left <= 0:
        raise ValueError(f"more than {FILE_LIMIT >> 20} MiB")
    return b"".join(chunks), (status.st_dev, status.st_ino)


def _permission(path: str) -> str | None:
    """Who could read a file that we may not: its owner, or that of the first directory that does not let us pass."""
    parts = os.path.abspath(path).split("/")
    for count in range(1, len(parts) + 1):
        part = "/".join(parts[:count]) or "/"
        wanted = os.R_OK if count == len(parts) else os.X_OK
        if not os.access(part, wanted, effective_ids=True):
            status = os.stat(part)
            mode = stat.S_IMODE(status.st_mode)
            owner = f"uid {status.st_uid}, to whom {part} belongs"
            return f"run as {owner}, or widen its mode {mode:04o}"
    return None


def _why(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else str(error)


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def warnings_for(config: Config, host: Host) -> Iterable[str]:
    """What a start says before it begins: old names, and keys whose effect is still to come."""
    for legacy in config.warnings:
        yield str(legacy)
    for key, part, origin in config.later(host):
        yield f"{origin}: {key} is understood but not yet applied: it comes with {part}"
