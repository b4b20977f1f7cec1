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
    from collections.abc import Callable, Generator

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
        return [
            name for name in dict.fromkeys(found) if name.startswith("lxc.") and "\0" not in name
        ]


class Difference(NamedTuple):
    """Two answers to one question that are not the same."""

    case: str
    question: str
    lxc: str
    ours: str


class Known(NamedTuple):
    """A listed difference: its name in docs/differences.md, a pattern of the questions, and what is true of the answers."""

    name: str
    question: str
    holds: Callable[[str, str], bool]


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
    text, _dashes, operations = (
        re.split(r"(^---\n)", rest, maxsplit=1, flags=re.MULTILINE)
        if "---\n" in rest
        else (rest, "", "")
    )
    text = text.replace("{CORPUS}", CORPUS).replace("{LONG}", LONG)
    done = [
        tuple(line.split(" ", 2)) for line in operations.replace("{CORPUS}", CORPUS).splitlines()
    ]
    return Case(f"{topic}: {title}", _unescaped(text), tuple(done))


def _unescaped(text: str) -> bytes:
    r"""`\xNN` is that byte, and a backslash before the end of the text takes the line end away."""
    data = text.encode().removesuffix(b"\\\n")
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), data)


# ------------------------------------------------------------------------------------- two oracles
class Lxc:
    """Debian's answers: one process for all questions, with a scratch directory for what LXC writes as it reads."""

    def __init__(self, directory: str) -> None:
        self.log = open(f"{directory}/stderr", "w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            ["/usr/bin/python3", f"{os.path.dirname(CORPUS)}/lxc_answers.py", directory], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=tools.environment(), cwd=directory,
        )  # fmt: skip

    def ask(self, *question: str) -> Answer:
        """One question. Fails the test when LXC dies of it."""
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
            status = self.process.wait()
            self.log.seek(0)
            pytest.fail(f"LXC died of {question} with status {status}: {self.log.read()[-2000:]}")
        answer: Answer = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        with self.process, self.log:
            pass


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

    def keys(self, prefix: str) -> str:
        return "\n".join(self.config.keys(prefix))

    def save(self) -> str:
        return self.config.text()


@pytest.fixture(scope="module")
def lxc(tmp_path_factory: pytest.TempPathFactory) -> Generator[Lxc, None, None]:
    oracle = Lxc(str(tmp_path_factory.mktemp("lxc")))
    yield oracle
    oracle.close()


@pytest.fixture(scope="module")
def differences(lxc: Lxc, tmp_path_factory: pytest.TempPathFactory) -> list[Difference]:
    """Every question of the corpus whose answers differ."""
    path = str(tmp_path_factory.mktemp("corpus") / "config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "/root")  # as the oracle's environment has it: lxc.environment = HOME
        return [found for case in cases() for found in compare(case, lxc, Ours(), path)]


def compare(case: Case, lxc: Lxc, ours: Ours, path: str) -> list[Difference]:
    """The differing answers of one case."""
    with open(path, "wb") as file:
        file.write(case.content)
    found = []

    def ask(*question: str) -> bool:
        theirs, mine = (_shown(question[0], maker.ask(*question)) for maker in (lxc, ours))
        if theirs != mine:
            asked = " ".join(question).replace(f" {path}", "")
            found.append(Difference(case.title, asked, theirs, mine))
        return theirs == mine == "True"

    if ask("load", path):
        for question in questions(case, lxc):
            ask(*question)
        for operation in case.operations:
            ask(*((*operation, "")[:3] if operation[0] == "set" else operation))
    return found


def questions(case: Case, lxc: Lxc) -> list[tuple[str, ...]]:
    """Everything that may be asked about a configuration: LXC's own list of keys, and what the case's lines name."""
    prefixes = dict.fromkeys(name.rpartition(".")[0] for name in case.names)
    numbered = [".".join(name.split(".")[:3]) for name in case.names if name.startswith("lxc.net.")]
    keys = [*ALL_KEYS, *case.names]
    for network in dict.fromkeys(numbered):
        keys += [f"{network}.{key}" for key in str(lxc.ask("keys", network) or "").split()]
    listed = [("keys", prefix) for prefix in prefixes if prefix != "lxc"]
    return [*(("get", key) for key in dict.fromkeys(keys)), *listed, ("save",)]


def _shown(verb: str, answer: Answer) -> str:
    """An answer as text: a list of keys sorted, random digits of a hardware address hidden."""
    if verb == "keys":
        return "\n".join(sorted(str(answer or "").split()))
    text = answer if isinstance(answer, str) else repr(answer)
    return re.sub(r"00:16:3e(?!:01:02:03)(:[0-9a-f]{2}){3}", "00:16:3e:RA:ND:OM", text)


# ------------------------------------------------------------------------------ what differs, and why
def _equal(theirs: str, mine: str) -> Callable[[str, str], bool]:
    return lambda lxc, ours: (lxc, ours) == (theirs, mine)


def _lines_were_left(lxc: str, ours: str) -> bool:
    """LXC's file is ours, with some older lines in it."""
    rest = iter(lxc.splitlines())
    return len(ours) < len(lxc) and all(line in rest for line in ours.splitlines())


def _only_blank_lines(lxc: str, ours: str) -> bool:
    texts = [[line for line in text.splitlines() if line.strip()] for text in (lxc, ours)]
    return texts[0] == texts[1]


def _more(lxc: str, ours: str) -> bool:
    return set(lxc.split()) < set(ours.split())


NAME = r"[\w.-]+"
KNOWN = (
    Known("unset texts", r"get lxc\.(cgroup\.dir.*|namespace\.share\..*)", _equal("(null)", "")),
    Known("network without a type", r"get lxc\.net(\.\d+\.type)?", lambda lxc, ours: (lxc, ours.strip()) in {("(invalid)\n", "empty"), ("(null)", "empty")}),
    Known("default of lxc.rootfs.mount", r"get lxc\.rootfs\.mount", lambda lxc, ours: lxc.startswith("/usr/lib/") and not ours),
    Known("default of a port's vlan", r"get lxc\.net\.\d+\.veth\.vlan\.id", _equal("0", "")),
    Known("one list of capabilities", r"get lxc\.cap\.(keep|drop)", lambda lxc, ours: bool(lxc) and not ours),
    Known("clearing lxc.tty.max", r"get lxc\.tty\.max", _equal("4", "0")),
    Known("changed lines are replaced", "save", _lines_were_left),
    Known("set to nothing", "save", lambda lxc, ours: ours.endswith(" =\n") and "\n" not in lxc),
    Known("blanks around a value that is set", r"get lxc\.execute\.cmd", _equal("  ls  ", "ls")),
    Known("clearing what an include sets", "save", lambda lxc, ours: "lxc.include" in lxc and ours == f"{lxc}lxc.mount.entry =\n"),
    Known("blank lines", "save", _only_blank_lines),
    Known("half an id map", "save", lambda lxc, ours: lxc == "None" and ours.startswith("lxc.idmap")),
    Known("form feed and vertical tab", r"get lxc\.uts\.name", _equal("", "c1")),
    Known("old names", "load", _equal("False", "True")),
    Known("NUL bytes", "load", _equal("True", "False")),
    Known("bytes beyond UTF-8", rf"get {NAME}", _equal("not UTF-8", "a\udcffb")),
    Known("address without a prefix length", r"get lxc\.net\.\d+\.ipv4\.address", _equal("9.1.2.3/8\n172.16.0.1/8\n192.168.0.1/8\n224.0.0.1/8", "9.1.2.3/8\n172.16.0.1/16\n192.168.0.1/24\n224.0.0.1/0")),
    Known("mtu in another base", r"get lxc\.net\.\d+\.mtu", _equal("0x100", "256")),
    Known("size of /dev set to nothing", r"get lxc\.autodev\.tmpfs\.size", _equal("500000", "0")),
    Known("more keys are listed", rf"keys {NAME}", _more),
    Known("keys below a part of a network", r"keys lxc\.net\.\d+\.\w.*", lambda lxc, ours: "type" in lxc and not ours),
    Known("keys of hooks", r"keys lxc\.hook", lambda lxc, ours: set(lxc.split()) - set(ours.split()) == {"autodevtmpfssize"}),
)  # fmt: skip


def _explains(known: Known, difference: Difference) -> bool:
    return bool(re.fullmatch(known.question, difference.question)) and known.holds(
        difference.lxc, difference.ours
    )


def test_every_difference_is_listed(differences: list[Difference]):
    assert [one for one in differences if not any(_explains(known, one) for known in KNOWN)] == []


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_a_listed_difference_still_shows(known: Known, differences: list[Difference]):
    assert any(_explains(known, one) for one in differences)


def test_the_list_is_documented():
    with open(tools.DIFFERENCES, encoding="utf-8") as file:
        section = re.split(r"^## ", file.read(), flags=re.MULTILINE)
    own = next(text for text in section if text.startswith("Configuration\n"))
    rows = re.findall(r"^\| ([^|]+?) +\|", own.partition("\n### ")[0], re.MULTILINE)
    assert [row for row in rows if row != "difference" and row.strip("-")] == [
        known.name for known in KNOWN
    ]


def test_the_corpus_is_large_and_its_titles_are_different():
    titles = [case.title for case in cases()]
    assert len(titles) >= 150
    assert len(set(titles)) == len(titles)


def test_the_same_keys_are_known(lxc: Lxc):
    assert str(lxc.ask("keys", "")).split() == ALL_KEYS
    ours = set(Config.empty().keys())
    assert [
        key for key in ALL_KEYS if key not in ours and key not in ("lxc.include", "lxc.hook")
    ] == []


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
