"""Problems of a configuration as an editor wants them: file, line, column, key, reason, suggestion; all of them at once.

Here is what the language itself can say: lines that cannot be used, old names, values that a comment slipped into, lines that
nobody reads. What keys mean together, and what a machine lacks, is found by lifecycle/check.py; `place` gives it a column.
Source: reference of LXC, section 2.1.
"""

from __future__ import annotations

from atoll.config import owners
from atoll.config.keys import WHITE, Many, Pairs
from atoll.config.text import INCLUDE, LONG, Config, LegacyName, load
from atoll.errors import ConfigError, Origin
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Final

    from atoll.config.keys import Key
    from atoll.errors import AtollError

ERROR: Final = "error"
WARNING: Final = "warning"
NOTE: Final = "note"
SEVERITIES: Final = (ERROR, WARNING, NOTE)
WORDS_SHOWN: Final = 12
STRANGERS_SHOWN: Final = 20
COMMENT_IS_CODE: Final = (
    "lxc.hook.", "lxc.net.", "lxc.apparmor.raw", "lxc.environment", "lxc.init.cmd", "lxc.execute.cmd", "lxc.mount.entry",
    "lxc.seccomp.notify.cookie",
)  # fmt: skip
"""Keys in whose values a # can mean something."""


class Problem(Record):
    """One problem. Lines and columns count from 1, in characters; 0 where the place is not known (-s, the whole file).

    `end`: the column after the last character that is meant. `suggestion` is what to do, where it is known.
    """

    severity: str
    message: str
    file: str
    line: int = 0
    column: int = 0
    end: int = 0
    key: str | None = None
    suggestion: str | None = None
    text: str = ""
    """The line as it stands."""

    def as_json(self) -> dict[str, object]:
        """For editors: all fields but the text of the line."""
        return {name: value for name, value in self.as_dict().items() if name != "text"}


class Reading(Record):
    """A configuration as far as it can be used, and what is wrong with its lines."""

    config: Config
    problems: tuple[Problem, ...]
    sources: Sources


class Sources:
    """The lines of the files that a configuration was read from, read again when a column is asked for."""

    def __init__(self, **texts: str) -> None:
        self._lines: dict[str, list[str]] = {}
        for file, text in texts.items():
            self.add(file, text)

    def add(self, file: str, text: str) -> None:
        """Text that is not in a file of this name (standard input)."""
        self._lines[file] = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

    def lines(self, file: str) -> list[str]:
        """The lines of a file; none when it cannot be read any more."""
        if file not in self._lines:
            try:
                data, _identity = load(file)
            except (OSError, ValueError):
                data = b""
            self.add(file, data.decode("utf-8", "surrogateescape"))
        return self._lines[file]

    def line(self, origin: Origin) -> str:
        """The line as it stands, with its indentation."""
        lines = self.lines(origin.file) if origin.line else []
        return lines[origin.line - 1] if len(lines) >= origin.line > 0 else origin.text

    def place(self, origin: Origin, token: str | None = None) -> tuple[int, int]:
        """Columns of the first character of a line's value, or of `token` in it, and after the last one.

        `token` may be the key's name. (0, 0) without a line.
        """
        if not origin.line:
            return 0, 0
        line = self.line(origin)
        stop = len(line.rstrip(WHITE))
        equals = line.find("=")
        start = equals + 1 if equals >= 0 else 0
        found = line.find(token, start) if token else -1
        if token and found < 0:
            found = line.find(token)
        if token and found >= 0:
            return found + 1, found + len(token) + 1
        while start < stop and line[start] in WHITE:
            start += 1
        return (start + 1, stop + 1) if start < stop else (_first(line) + 1, stop + 1)


def read(path: str) -> Reading:
    """Read a file and find what its lines have. Raises ConfigError when it cannot be read at all."""
    errors: list[ConfigError] = []
    sources = Sources()
    try:
        config = Config.read(path, problems=errors)
    except ConfigError as error:
        if not errors:  # else it is the first beyond the limit
            raise
        errors.append(error)
        config = Config.empty()
    return _reading(config, errors, sources, path)


def parse(text: str, file: str) -> Reading:
    """The same for a text; `file` is what positions call it."""
    errors: list[ConfigError] = []
    sources = Sources()
    sources.add(file, text)
    try:
        config = Config.parse(text, file=file, problems=errors)
    except ConfigError as error:
        errors.append(error)
        config = Config.empty()
    return _reading(config, errors, sources, file)


def from_error(
    error: AtollError, sources: Sources, *, file: str, severity: str = ERROR
) -> tuple[Problem, ...]:
    """What an error says, one problem for each word of a list that cannot be used."""
    origin = getattr(error, "origin", None)
    key = getattr(error, "key", None)
    if origin is None:
        return (
            Problem(
                severity=severity, message=error.message, file=file, key=key, suggestion=error.fix
            ),
        )
    target = owners.find(key) if key else None
    if severity == ERROR and target is not None and target.key is not None:
        words = _bad_words(target.key, sources, origin)
        if words:
            return tuple(
                _located(
                    sources,
                    origin,
                    severity=severity,
                    message=f"cannot set {key} = {word[:LONG]}: {why[:LONG]}",
                    key=key,
                    suggestion=_suggest(target.key, word),
                    token=word,
                )
                for word, why in words
            )
    unknown = bool(key) and target is None
    return (
        _located(
            sources,
            origin,
            severity=severity,
            message=error.message,
            key=key,
            suggestion=error.fix,
            token=key if unknown else None,
        ),
    )


def in_order(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """By file (in the order of their first problem), line and column; each once."""
    files = {problem.file: number for number, problem in reversed(list(enumerate(problems)))}
    unique = dict.fromkeys(problems)
    return tuple(
        sorted(
            unique, key=lambda p: (files[p.file], p.line, p.column, SEVERITIES.index(p.severity))
        )
    )


# ---------------------------------------------------------------------------------------- private
def _reading(config: Config, errors: Sequence[ConfigError], sources: Sources, file: str) -> Reading:
    found: list[Problem] = []
    for error in errors:
        found += from_error(error, sources, file=file)
    found += [_old_name(warning, sources) for warning in config.warnings]
    found += _strangers(config, sources, file)
    found += _overridden(config, sources)
    found += _comments(config, sources)
    return Reading(config=config, problems=tuple(found), sources=sources)


def _located(
    sources: Sources, origin: Origin, *, token: str | None = None, **fields: Any
) -> Problem:
    column, end = sources.place(origin, token)
    text = sources.line(origin)
    return Problem(file=origin.file, line=origin.line, column=column, end=end, text=text, **fields)


def _bad_words(key: Key, sources: Sources, origin: Origin) -> list[tuple[str, str]]:
    """The words of a list's line that are no items, each with the reason; none for what is no list of words."""
    kind = key.kind
    line = sources.line(origin)
    if not isinstance(kind, Many) or kind.split is None:
        return _bad_value(key, line)
    found = []
    for word in dict.fromkeys(kind.split(_value(line))):
        try:
            kind.item.parse(word)
        except ValueError as error:
            found.append((word, str(error)))
    return found


def _bad_value(key: Key, line: str) -> list[tuple[str, str]]:
    """A value that is none of the words that its key takes."""
    kind = _item(key)
    value = _value(line)
    if not value or not kind.values:
        return []
    try:
        kind.parse(value)
    except ValueError as error:
        return [(value, str(error))]
    return []


def _item(key: Key) -> Any:
    """The value type of one item."""
    return key.kind.item if isinstance(key.kind, (Many, Pairs)) else key.kind


def _suggest(key: Key, word: str) -> str | None:
    """The word that was meant, or those that there are."""
    from difflib import get_close_matches

    kind = _item(key)
    values: dict[str, str] = {value.lower(): value for value in kind.values}
    wanted = word.lower().removeprefix("cap_")
    near = get_close_matches(wanted, values, n=1, cutoff=0.6)
    if near or f"sig{wanted}" in values:
        return f"did you mean {values[near[0]] if near else values[f'sig{wanted}']}?"
    if 0 < len(values) <= WORDS_SHOWN:
        return f"it takes {', '.join(kind.values)}"
    return None


def _old_name(warning: LegacyName, sources: Sources) -> Problem:
    origin = warning.origin
    if warning.new is None:
        message, suggestion = f"{warning.old} is an old key without effect", "remove the line"
    else:
        message = f"{warning.old} is the old name of {warning.new}"
        suggestion = f"write {warning.new}"
    return _located(
        sources,
        origin,
        severity=WARNING,
        message=message,
        key=warning.new or warning.old,
        suggestion=suggestion,
        token=warning.old,
    )


def _strangers(config: Config, sources: Sources, top: str) -> Iterator[Problem]:
    """Lines that look like settings and are read by nobody, because they do not begin with `lxc.`."""
    files = dict.fromkeys([top, *(a.origin.file for a in config.assignments if a.origin.line)])
    left = STRANGERS_SHOWN
    for file in files:
        for number, line in enumerate(sources.lines(file), 1):
            stripped = line.strip(WHITE)
            if not stripped or stripped.startswith(("#", "lxc.")) or "=" not in stripped:
                continue
            if left == 0:
                return
            left -= 1
            name = stripped.partition("=")[0].rstrip(WHITE)
            near = owners.nearest(name) if len(name) < 64 else ()
            yield _located(
                sources,
                Origin(file=file, line=number, text=stripped),
                severity=WARNING,
                message="this line is ignored: it does not begin with `lxc.`",
                key=None,
                suggestion=f"did you mean {near[0]}?"
                if near
                else "put # before it if it is meant so",
                token=name,
            )


def _overridden(config: Config, sources: Sources) -> Iterator[Problem]:
    """Values that a later line of the same file replaces: one of the two is a mistake."""
    seen: dict[tuple[str, str], Origin] = {}
    for assignment in config.assignments:
        target = owners.find(assignment.key)
        key = target.key if target else None
        origin = assignment.origin
        place = origin.file, assignment.key
        if key is None or key.resets or not assignment.value or not origin.line:
            if key is None or key.resets or key.name.endswith(".*"):
                prefix = assignment.key.removesuffix(".type")
                seen = {p: o for p, o in seen.items() if not p[1].startswith(f"{prefix}.")}
            seen.pop(place, None)
            continue
        if isinstance(key.kind, Many) or (isinstance(key.kind, Pairs) and not key.kind.unique):
            continue
        before = seen.get(place)
        if before is not None and before.text != origin.text:
            yield _located(
                sources,
                before,
                severity=WARNING,
                message=f"this has no effect: line {origin.line} sets {assignment.key} again",
                key=assignment.key,
                suggestion="remove one of the two",
            )
        seen[place] = origin


def _comments(config: Config, sources: Sources) -> Iterator[Problem]:
    """A # after a value, which belongs to the value."""
    for assignment in config.assignments:
        value, hash_, _rest = assignment.value.partition(" #")
        if not hash_ or assignment.key.startswith(COMMENT_IS_CODE) or assignment.key == INCLUDE:
            continue
        if not assignment.origin.line or _value(sources.line(assignment.origin))[:1] in "'\"":
            continue
        yield _located(
            sources,
            assignment.origin,
            severity=WARNING,
            message="the text after # belongs to the value: a comment needs a line of its own",
            key=assignment.key,
            suggestion=f"write {assignment.key} = {value.rstrip(WHITE)}",
            token=assignment.value[len(value) + 1 :],
        )


def _value(line: str) -> str:
    return line.partition("=")[2].strip(WHITE)


def _first(line: str) -> int:
    return len(line) - len(line.lstrip(WHITE))
