"""Changing a configuration file: a key set, added to or unset where it stands, and saved whole or not at all.

Config.set and .clear (text.py) are the library's and behave as LXC's do; this is what people at a terminal expect. A changed
text is read again before it is saved: nothing is written that has one more problem than before, or whose line has no effect.
"""

from __future__ import annotations

import fcntl
import os
import stat

from atoll.config import owners
from atoll.config.keys import WHITE, Many, Pairs
from atoll.config.text import INCLUDE, Config, covers, load
from atoll.errors import ConfigError, HostError, reason
from atoll.linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from typing import Self

    from atoll.config.text import Assignment
    from atoll.linux.files import OwnedFd


class ConfigFile:
    """A configuration file that is being changed; others who change it through this class wait: `with ConfigFile(path)`.

    `config` is what it says, with the changes so far; `problems` the lines of it that cannot be used. A change that would add
    a problem raises ConfigError and changes nothing. A symbolic link at `path` stays one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._locked: OwnedFd | None = None
        self._crlf = False
        self.original = ""
        self.problems: list[ConfigError] = []
        self.config = Config.empty()

    def __enter__(self) -> Self:
        try:
            self._locked = _lock(self.path)
            text = load(self.path)[0].decode("utf-8", "surrogateescape")
            self._crlf = "\r\n" in text
            self.original = text.replace("\r\n", "\n")
        except (OSError, ValueError):
            pass  # read() says it better
        self.config = Config.read(self.path, problems=self.problems)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._locked is not None:
            self._locked.close()

    def save(self) -> None:
        """Replace the contents, if there is a change. Raises HostError; then the file is as it was."""
        text = self.config.text()
        if text != self.original:
            data = text.replace("\n", "\r\n") if self._crlf else text
            replace(self.path, data.encode("utf-8", "surrogateescape"))

    # -- changes
    def set(self, key: str, values: Sequence[str]) -> None:
        """Give the key these values, more than one of a list; an empty one is what resets the key.

        Its lines stay where they are; those beyond go, and what is new comes after them.
        """
        key = present_name(key)
        if len(values) != 1 and not is_list(key):
            raise ConfigError(f"cannot set {key}: it has one value, not {len(values)}", key=key)
        own = self._own(key)
        new = _lines(key, values)
        places = [self._replaced(own, new), [*self._without(own), *new]]
        if is_list(key):
            places.append([*self._without(own), f"{key} =", *new])
        self._first_effective(key, new, places, ())

    def add(self, key: str, values: Sequence[str]) -> None:
        """Add these values to a list. Raises ConfigError for a key with one value."""
        key = present_name(key)
        if not is_list(key) and owners.find(key) is not None:
            raise ConfigError(
                f"cannot add to {key}: it has one value", key=key, fix="use set to replace it"
            )
        own = self._own(key)
        lines = self._without(())
        end = own[-1] + 1 if own else len(lines)
        new = _lines(key, values)
        places = [lines[:end] + new + lines[end:], lines + new]
        self._first_effective(key, new, places, effective(self.config, key))

    def unset(self, key: str) -> None:
        """Take the key's lines away: it has its default again. `lxc.net.0`, `lxc.hook` take what is below along."""
        key = present_name(key)
        self.config.clear(key)  # refuses unknown names
        target = owners.find(key)
        if target is not None and target.key is not None and target.key.resets:
            key = key.rpartition(".")[0]
        kept = self._without([number for number, name in self._keys() if covers(key, name)])
        after, problems = self._checked(key, kept)
        if included := after.origins(key):
            after, problems = self._checked(key, [*kept, f"{key} ="])
            if after.origins(key):  # an empty value is one, too (lxc.autodev)
                raise ConfigError(
                    f"cannot unset {key}: {included[-1]}, which is included, sets it", key=key,
                    fix="set it to the value that you want",
                )  # fmt: skip
        self.config, self.problems = after, problems

    # -- private
    def _keys(self) -> Iterator[tuple[int, str]]:
        """(number from 0, present name) of each line that is about a key, those that cannot be used too."""
        for number, (line, key) in enumerate(self.config.lines):
            if key is not None:
                yield number, key
            elif line.strip(WHITE).startswith("lxc."):
                name = line.strip(WHITE).partition("=")[0].rstrip(WHITE)
                yield number, owners.LEGACY.get(name) or name

    def _own(self, key: str) -> list[int]:
        return [number for number, name in self._keys() if name == key]

    def _without(self, numbers: Sequence[int]) -> list[str]:
        gone = set(numbers)
        return [line for n, (line, _key) in enumerate(self.config.lines) if n not in gone]

    def _replaced(self, own: Sequence[int], new: Sequence[str]) -> list[str]:
        """The lines with the last of `own` replaced one by one, the others gone, and what is left of `new` after them."""
        places = list(own)[-len(new) :]
        rest = list(new)
        lines: list[str] = []
        for number, (line, _key) in enumerate(self.config.lines):
            if number not in own:
                lines.append(line)
            elif number in places:
                count = 1 if number != places[-1] else len(rest)
                lines += rest[:count]
                del rest[:count]
        return lines + rest

    def _first_effective(
        self, key: str, new: Sequence[str], places: Sequence[list[str]], kept: Sequence[str]
    ) -> None:
        """Take the first of some texts whose new lines, besides values that are `kept`, are all that the key then has.

        An included file further down may have the last word, and a line in another place may mean something else.
        """
        others = _others(self.config, key)
        for lines in places:
            # By identity: a line of the same text may have been there before.
            mine = {n for n, line in enumerate(lines, 1) if any(line is one for one in new)}
            after, problems = self._checked(key, lines, mine)
            if key == INCLUDE or (
                self._rest(after, key, mine) == list(kept) and _others(after, key) == others
            ):
                self.config, self.problems = after, problems
                return
        raise ConfigError(
            f"cannot set {key}: no place in {self.path} gives it this value and leaves the others alone",
            key=key, fix="an included file sets it as well, or it resets other keys; edit the file",
        )  # fmt: skip

    def _rest(self, config: Config, key: str, mine: Container[int]) -> list[str] | None:
        """The values of a key besides those of my lines; None when an included file has the last word."""
        found = _survivors(config, key)
        rest = [a for a in found if a.origin.file != self.path or a.origin.line not in mine]
        overridden = len(found) == len(rest) and any(
            a.key == key and a.value and a.origin.line in mine and a.origin.file == self.path
            for a in config.assignments
        )
        return None if overridden else [assignment.value for assignment in rest]

    def _checked(
        self, key: str, lines: Sequence[str], mine: Container[int] = ()
    ) -> tuple[Config, list[ConfigError]]:
        """The configuration with these lines, and its problems. Raises the first that was not there before.

        Lines with the numbers in `mine` are the caller's, and stand in no file yet.
        """
        if any(c in line for line in lines for c in "\n\r\0"):
            raise ConfigError(f"cannot set {key}: a value is one line without NUL bytes", key=key)
        problems: list[ConfigError] = []
        text = "".join([f"{line}\n" for line in lines])
        config = Config.parse(text, file=self.path, problems=problems)
        known = [problem.message for problem in self.problems]
        for problem in problems:
            origin = problem.origin
            if origin is not None and origin.file == self.path and origin.line in mine:
                raise ConfigError(problem.message, key=key, fix=problem.fix) from problem
            if problem.message not in known:
                raise ConfigError(
                    f"cannot change {key}: another line could not be used then: {problem.message}",
                    key=key, origin=origin, fix=problem.fix or "change that line first",
                ) from problem  # fmt: skip
            known.remove(problem.message)
        return config, problems


def present_name(key: str) -> str:
    """The present name of a key, which may be given by its name before LXC 3."""
    if key == "lxc.rootfs.backend":
        raise ConfigError(f"{key} is now a part of lxc.rootfs.path: TYPE:PATH", key=key)
    if key in owners.LEGACY:
        new = owners.LEGACY[key]
        if new is None:
            raise ConfigError(f"{key} is an old key without effect", key=key)
        return new
    if key.startswith("lxc.limit."):
        return f"lxc.prlimit.{key.removeprefix('lxc.limit.')}"
    if key.startswith("lxc.network."):
        number, _dot, sub = key.removeprefix("lxc.network.").partition(".")
        if not number.isdigit():
            raise ConfigError(
                f"{key} does not say which network", key=key,
                fix=f"use lxc.net.N.{key.removeprefix('lxc.network.')}",
            )  # fmt: skip
        return f"lxc.net.{number}.{owners.LEGACY_NETWORK.get(sub, sub)}".rstrip(".")
    return key


def is_list(key: str) -> bool:
    """Whether each line of the key adds a value."""
    target = owners.find(key)
    kind = target.key.kind if target is not None and target.key is not None else None
    return isinstance(kind, Many) or (isinstance(kind, Pairs) and not kind.unique)


def effective(config: Config, key: str) -> list[str]:
    """The values, as they were written, that the key has: one for each line that counts, of included files too."""
    return [assignment.value for assignment in _survivors(config, key)]


def _survivors(config: Config, key: str) -> list[Assignment]:
    """The assignments that give a key what it has, in their order: not those that were cleared or replaced later."""
    counting = {id(origin) for origin in config.origins(key)}
    return [assignment for assignment in config.assignments if id(assignment.origin) in counting]


def _others(config: Config, key: str) -> dict[str, list[str]]:
    """What all other keys have."""
    names = dict.fromkeys(assignment.key for assignment in config.assignments)
    counting = {id(origin) for name in names if name != key for origin in config.origins(name)}
    found: dict[str, list[str]] = {}
    for assignment in config.assignments:
        if id(assignment.origin) in counting:
            found.setdefault(assignment.key, []).append(assignment.value)
    return found


def _lines(key: str, values: Sequence[str]) -> list[str]:
    return [f"{key} = {value.strip(WHITE)}".rstrip(WHITE) for value in values]


# ------------------------------------------------------------------------------------------- saving
def _lock(path: str) -> OwnedFd:
    """The file, locked until it is closed; whoever had it before may have put another in its place."""
    while True:
        locked = files.open_fd(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            fcntl.flock(locked.fileno(), fcntl.LOCK_EX)
            here, there = os.fstat(locked.fileno()), os.stat(path)
        except OSError:
            locked.close()
            raise
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            return locked
        locked.close()


def replace(path: str, data: bytes, *, model: str | None = None) -> None:
    """Put `data` in a file's place, with its owner, group and mode (or those of `model`); all or nothing.

    A symbolic link is followed, and stays. Raises HostError.
    """
    target = os.path.realpath(path)
    temporary = f"{target}.{os.urandom(6).hex()}.new"
    try:
        status = os.stat(model or target)
        if not stat.S_ISREG(status.st_mode):
            raise HostError(f"cannot save {path}: it is not a regular file")
        files.write_atomic(temporary, data, 0o600)
        try:
            _give(temporary, status, path)
            files.rename(temporary, target)
        except BaseException:
            files.unlink(temporary)
            raise
    except OSError as error:
        raise HostError(f"cannot save {path}: {reason(error)}", errno=error.errno) from error


def _give(path: str, status: os.stat_result, shown: str) -> None:
    """Give a file the owner, group and mode that another has."""
    own = os.stat(path)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        try:
            files.chown(path, status.st_uid, status.st_gid)
        except PermissionError as error:
            raise HostError(
                f"cannot save {shown}: its owner and group cannot be kept",
                fix=f"do it as root, or as their user: uid {status.st_uid}, gid {status.st_gid}",
                errno=error.errno,
            ) from error
    files.chmod(path, stat.S_IMODE(status.st_mode))
