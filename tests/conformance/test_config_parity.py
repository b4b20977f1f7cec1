"""Every answer about a configuration: the same from Debian's LXC and from ours, or a difference that is listed.

corpus/*.txt holds the configurations (corpus/README.md says how); Debian's answers come from lxc_answers.py through
python3-lxc, ours from Config. What differs must be one of DIFFERENCES, each of which is a row of docs/differences.md, section
"Configuration". A difference that is not listed fails, and so does a listed one that no longer shows.
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from abilities import needs
from atoll.config.text import Config
from atoll.errors import ConfigError
from conformance import tools

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = needs("lxc", "python3-lxc")

CORPUS = f"{os.path.dirname(os.path.abspath(__file__))}/corpus"
LONG = "x" * 5000
Answer = str | bool | None


class Case(NamedTuple):
    """One configuration, and what is done with it besides asking for everything."""

    title: str
    content: bytes
    operations: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> list[str]:
        """The names of keys that its lines have."""
        lines = re.split(r"[\r\n]", self.content.decode("utf-8", "surrogateescape"))
        found = [line.partition("=")[0].strip() for line in lines if "=" in line]
        return [name for name in dict.fromkeys(found) if name.startswith("lxc.") and "\0" not in name]


class Known(NamedTuple):
    """A listed difference: its name in docs/differences.md; which questions, and both answers, as patterns of the whole."""

    name: str
    question: str
    lxc: str
    ours: str


def cases() -> list[Case]:
    """The corpus."""
    found = []
    for path in sorted(glob.glob(f"{CORPUS}/*.txt")):
        with open(path, encoding="utf-8") as file:
            sections = re.split(r"^=== ?", file.read(), flags=re.MULTILINE)[1:]
        topic = os.path.basename(path).removesuffix(".txt")
        found += [_case(topic, section) for section in sections]
    return found


def _case(topic: str, section: str) -> Case:
    title, _newline, rest = section.partition("\n")
    text, _dashes, operations = re.split(r"(^---\n)", rest, maxsplit=1, flags=re.MULTILINE) if "---\n" in rest else (rest, "", "")
    text = text.replace("{CORPUS}", CORPUS).replace("{LONG}", LONG)
    done = [tuple(line.split(" ", 2)) for line in operations.replace("{CORPUS}", CORPUS).splitlines()]
    return Case(f"{topic}: {title}", _unescaped(text), tuple(done))


def _unescaped(text: str) -> bytes:
    """`\\xNN` is that byte, and a backslash before the end of the text takes the line end away."""
    data = text.encode().removesuffix(b"\\\n")
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), data)


# ------------------------------------------------------------------------------------- two oracles
class Lxc:
    """Debian's answers: one process for all questions, started again when LXC takes it down."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        script = f"{os.path.dirname(CORPUS)}/lxc_answers.py"
        return subprocess.Popen(
            ["/usr/bin/python3", script, self.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=tools.environment(),
        )  # fmt: skip

    def ask(self, *question: str) -> Answer:
        """One question; "crash" when LXC died of it."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(f"{json.dumps(question)}\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            self.process = self._start()
            return "crash"
        answer: Answer = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        self.process.kill()
        self.process.wait()


class Ours:
    """Our answers to the same questions."""

    config = Config.empty()

    def ask(self, *question: str) -> Answer:
        """One question; what is refused is False, or None where a text was asked for."""
        verb, *arguments = question
        answer: Answer = getattr(self, verb)(*arguments)
        return answer

    def load(self, path: str) -> bool:
        return self._take(lambda: Config.read(path))

    def set(self, key: str, value: str) -> bool:
        return self._take(lambda: self.config.set(key, value))

    def clear(self, key: str) -> bool:
        return self._take(lambda: self.config.clear(key))

    def _take(self, make) -> bool:
        try:
            self.config = make()
        except ConfigError:
            return False
        return True

    def get(self, key: str) -> str | None:
        try:
            return self.config.get(key)
        except ConfigError:
            return None

    def keys(self, prefix: str) -> str | None:
        return "".join(f"{key}\n" for key in self.config.keys(prefix)) or None

    def save(self) -> str:
        return self.config.text()


@pytest.fixture(scope="module")
def lxc(tmp_path_factory: pytest.TempPathFactory) -> Generator[Lxc, None, None]:
    oracle = Lxc(str(tmp_path_factory.mktemp("lxc")))
    yield oracle
    oracle.close()


@pytest.fixture(scope="module")
def table(lxc: Lxc, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str, str]]:
    """Every question whose answers differ: case, question, LXC's answer, ours."""
    os.environ.setdefault("HOME", "/root")
    path = str(tmp_path_factory.mktemp("corpus") / "config")
    return [difference for case in cases() for difference in compare(case, lxc, Ours(), path)]


def compare(case: Case, lxc: Lxc, ours: Ours, path: str) -> list[tuple[str, str, str, str]]:
    """The differing answers of one case."""
    with open(path, "wb") as file:
        file.write(case.content)
    found = []

    def ask(*question: str) -> bool:
        theirs, mine = _shown(lxc.ask(*question)), _shown(ours.ask(*question))
        if theirs != mine:
            found.append((case.title, " ".join(question).replace(f" {path}", ""), theirs, mine))
        return theirs == mine == "True"

    if ask("load", path):
        for question in questions(case, lxc):
            ask(*question)
        for operation in case.operations:
            ask(*(operation if operation[0] != "set" else (*operation, "")[:3]))
    return found


def questions(case: Case, lxc: Lxc) -> list[tuple[str, ...]]:
    """Everything that may be asked about a configuration: LXC's own list of keys, and what the case's lines name."""
    networks = sorted({".".join(name.split(".")[:3]) for name in case.names if name.startswith("lxc.net.")})
    keys = [*ALL_KEYS, *case.names]
    for network in networks:
        below = lxc.ask("keys", network)
        keys += [f"{network}.{key}" for key in str(below or "").split("\n") if key]
    prefixes = dict.fromkeys(name.rpartition(".")[0] for name in case.names)
    return [*(("get", key) for key in dict.fromkeys(keys)), *(("keys", prefix) for prefix in prefixes if prefix != "lxc"), ("save",)]


def _shown(answer: Answer) -> str:
    text = answer if isinstance(answer, str) else repr(answer)
    return re.sub(r"00:16:3e(?!:01:02:03)(:[0-9a-f]{2}){3}", "00:16:3e:RA:ND:OM", text)


ALL_KEYS = """
lxc.arch lxc.apparmor.profile lxc.apparmor.allow_incomplete lxc.apparmor.allow_nesting lxc.apparmor.raw
lxc.autodev.tmpfs.size lxc.autodev lxc.cap.drop lxc.cap.keep lxc.cgroup2 lxc.cgroup.dir.monitor.pivot
lxc.cgroup.dir.monitor lxc.cgroup.dir.container.inner lxc.cgroup.dir.container lxc.cgroup.dir lxc.cgroup.relative
lxc.cgroup lxc.console.buffer.size lxc.console.logfile lxc.console.path lxc.console.rotate lxc.console.size
lxc.sched.core lxc.environment lxc.ephemeral lxc.execute.cmd lxc.group lxc.hook.autodev lxc.hook.clone
lxc.hook.destroy lxc.hook.mount lxc.hook.post-stop lxc.hook.pre-mount lxc.hook.pre-start lxc.hook.start
lxc.hook.start-host lxc.hook.stop lxc.hook.version lxc.hook lxc.idmap lxc.include lxc.init.cmd lxc.init.gid
lxc.init.groups lxc.init.uid lxc.init.cwd lxc.keyring.session lxc.log.file lxc.log.level lxc.log.syslog
lxc.monitor.unshare lxc.monitor.signal.pdeath lxc.mount.auto lxc.mount.entry lxc.mount.fstab lxc.namespace.clone
lxc.namespace.keep lxc.time.offset.boot lxc.time.offset.monotonic lxc.net lxc.no_new_privs lxc.prlimit lxc.pty.max
lxc.rootfs.managed lxc.rootfs.mount lxc.rootfs.options lxc.rootfs.path lxc.seccomp.allow_nesting
lxc.seccomp.notify.cookie lxc.seccomp.notify.proxy lxc.seccomp.profile lxc.selinux.context.keyring
lxc.selinux.context lxc.signal.halt lxc.signal.reboot lxc.signal.stop lxc.start.auto lxc.start.delay lxc.start.order
lxc.tty.dir lxc.tty.max lxc.uts.name lxc.sysctl lxc.proc
""".split()
