"""A fuzzer for the configuration's reader: `make fuzz` (FUZZ_SECONDS=60). Needs atheris (x86-64, glibc), which it installs.

Arbitrary bytes become a file and two more that it can include. Whatever they are, reading ends with a configuration, or with a
ConfigError that has a position; a configuration can be asked, written, read again, changed and checked. Anything else is a
finding: libFuzzer writes the bytes to crash-… and `fuzz_config.py crash-…` runs them again.
"""

from __future__ import annotations

import os
import sys
import tempfile

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # only make fuzz installs it

with atheris.instrument_imports():
    from atoll.config import check, document, owners
    from atoll.config.keys import Key
    from atoll.config.text import Config
    from atoll.errors import ConfigError

    list(owners.names())  # imports what parses values

SEPARATOR = b"\xff===\xff"
"""Between the files of an input."""
NAMES = ("config", "inner", "drop/a.conf")
SOME = 4
"""Assignments of an input that are asked for and changed: each change reads the whole again."""
SLOW = 1 << 14
"""Bytes above which only reading is tried: the rest is repeated for each key."""
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def read(data: bytes) -> None:
    """One input: files, then everything that can be done with a configuration."""
    vars(owners)["nearest"] = nearest if len(data) % 16 == 0 else no_suggestion
    contents = data.split(SEPARATOR, len(NAMES) - 1)
    for name, content in zip(NAMES, contents + [b""] * len(NAMES), strict=False):
        with open(name, "wb") as file:
            file.write(content)
    try:
        config = Config.read(NAMES[0])
    except ConfigError as error:
        if error.origin is None and not error.message.startswith("cannot read the configuration"):
            raise AssertionError(f"no position: {error.message}") from error
    else:
        use(config)
    if len(data) < SLOW:
        try:
            reading = check.read(NAMES[0])
        except ConfigError:  # cannot be read at all
            return
        for problem in check.in_order(reading.problems):
            problem.as_json()


nearest = owners.nearest


def no_suggestion(_name: str) -> tuple[str, ...]:
    """Instead of the search for similar names, which takes most of the time and is tried with every sixteenth input."""
    return ()


def use(config: Config) -> None:
    """Ask, write, read again, change."""
    saved = config.text()
    again = Config.parse(saved, file="again")
    if again.text() != saved:
        raise AssertionError(f"written otherwise: {saved!r} {again.text()!r}")
    for assignment in config.assignments[:SOME]:
        for act in (config.get, config.clear, config.origins, config.mentions):
            try:
                act(assignment.key)
            except ConfigError:
                continue
        try:
            config.set(assignment.key, assignment.value)
        except ConfigError:
            continue
    config.omit([assignment.origin for assignment in config.assignments[:3]])
    config.later()


def words() -> str:
    """A dictionary for libFuzzer: what lines begin with, and examples of values."""
    tokens = {"lxc.include = inner", "lxc.include = drop", "lxc.network.type = veth", "lxc.net.0."}
    for section in document.sections():
        for declared in document.declared(section):
            tokens.add(declared.name.replace(".N.", ".0.").rstrip("*"))
            if isinstance(declared, Key):
                tokens.update(document.example_lines(declared))
    tokens.update(owners.LEGACY)
    quoted = [token.replace("\\", "\\\\").replace('"', '\\"') for token in sorted(tokens)]
    return "".join(f'"{token}"\n' for token in quoted if token.isascii())


def seeds(directory: str) -> None:
    """Configurations to begin with: Debian's and the cases of the parity corpus."""
    found: list[bytes] = []
    for top in ("/usr/share/lxc/config", f"{REPOSITORY}/tests/conformance/corpus"):
        for parent, _directories, names in os.walk(top):
            for name in names:
                with open(f"{parent}/{name}", "rb") as file:
                    found += file.read().split(b"\n=== ")
    for number, content in enumerate(found):
        with open(f"{directory}/{number}", "wb") as file:
            file.write(content[: SLOW // 4])


def main() -> None:
    """Run libFuzzer in a directory of its own; its options and corpora are the arguments."""
    arguments = [sys.argv[0]]
    for argument in sys.argv[1:]:
        arguments.append(argument if argument.startswith("-") else os.path.abspath(argument))
    with tempfile.TemporaryDirectory(prefix="atoll-fuzz-") as directory:
        os.makedirs(f"{directory}/work/drop")
        os.makedirs(f"{directory}/seeds")
        seeds(f"{directory}/seeds")
        with open(f"{directory}/words", "w", encoding="utf-8") as file:
            file.write(words())
        single = any(os.path.isfile(argument) for argument in arguments[1:])
        if not single:
            arguments += [f"{directory}/seeds"]
        here = os.getcwd()
        arguments += [f"-dict={directory}/words", f"-artifact_prefix={here}/", "-timeout=10"]
        os.chdir(f"{directory}/work")
        atheris.Setup(arguments, read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
