"""Bad input for the reader: long lines, many lines, deep includes, bytes that are no text. In linear time, or a timeout tells.

What fuzzing finds comes here as a case; `make fuzz` looks for more.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config import check, document
from atoll.config.text import DEPTH_LIMIT, Config
from atoll.errors import ConfigError

MEGA = 1 << 20
MANY = 1 << 16
LONG = "x" * MEGA
NAMES = sorted(
    key.name.replace(".N.", ".0.").replace("*", "a")
    for section in document.sections()
    for key in document.declared(section)
)
pytestmark = pytest.mark.timeout(60)


def read(text: str) -> Config | ConfigError:
    try:
        return Config.parse(text)
    except ConfigError as error:
        return error


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value",
    ["x" * MANY, "9" * MANY, "1 " * (MANY // 2), "a" + "." * MANY, "0" * MANY + "x"],
    ids=str.__len__,
)
def test_a_long_value(name: str, value: str) -> None:
    lines = "lxc.net.0.type = veth\n" if name.startswith("lxc.net.0.") else ""
    result = read(f"{lines}{name} = {value}\n")
    if isinstance(result, ConfigError):
        assert result.origin is not None
        assert len(result.message) < 1000
        assert len(result.origin.text) <= 400
    else:
        assert result.text().endswith(f"{value.rstrip()}\n") or result.text().rstrip().endswith(
            value.rstrip()
        )
        result.mentions(name)


@pytest.mark.parametrize(
    "line",
    [
        LONG, f"lxc.{LONG}", f"lxc.{LONG} = 1", f"lxc.net.{'9' * MEGA}.type = veth", f"lxc.net.0.{LONG} = 1", f"lxc.sysctl.{LONG} = 1",
        f"lxc.sysctl{'.' * MEGA} = 1", f"lxc.include = {LONG}", f"lxc.include = {LONG}/", f"lxc.network.{LONG} = 1", " " * MEGA,
        f"lxc.uts.name{' ' * MEGA}= a", f"lxc.uts.name = {'=' * MEGA}", f"lxc.environment = {LONG}", f"lxc.idmap = {'u ' * MEGA}",
        f"lxc.net.0.hwaddr = {'xx:' * MEGA}", f"lxc.rootfs.backend = {LONG}", f"lxc.prlimit.{LONG} = 1", "'" * MEGA,
    ],
    ids=lambda line: line[:20],
)  # fmt: skip
def test_a_line_of_a_megabyte(line: str) -> None:
    result = read(f"{line}\n")
    if isinstance(result, ConfigError):
        assert result.origin is not None
        assert result.origin.line == 1
    else:
        result.mentions("lxc.sysctl")
        assert result.text() == f"{line}\n" or "hwaddr" in line
    check.parse(f"{line}\n", "f")


@pytest.mark.parametrize(
    "line",
    ["lxc.sysctl.a{} = 1", "lxc.mount.entry = a{}", "lxc.cap.drop = kill", "lxc.net.{}.type = veth", "lxc.tty.max = {}", "lxc.tty.max =",
     "lxc.utsname = c{}", "# {}", "", "lxc.hook =", "lxc.cgroup.a.b = {}", "lxc.network.type = veth", "lxc.environment = A={}", "lxc.net =",
     "lxc.idmap = u {} 5 1", "lxc.apparmor.raw = {}"],
)  # fmt: skip
def test_many_lines(line: str) -> None:
    count = 20_000
    config = Config.parse("".join(f"{line.format(number)}\n" for number in range(count)))
    assert config.text().count("\n") == count
    for assignment in config.assignments[:3]:
        config.origins(assignment.key)
    config.mentions("lxc.sysctl")
    config.define("lxc.uts.name = a")
    check.parse(config.text(), "f")


def test_as_many_errors_end_soon() -> None:
    problems: list[ConfigError] = []
    with pytest.raises(ConfigError):
        Config.parse("".join(f"lxc.unknown.key{n} = 1\n" for n in range(20_000)), problems=problems)
    assert len(problems) == 100


def test_includes_as_deep_as_they_may_be(tmp_path) -> None:
    last = DEPTH_LIMIT
    for depth in range(last + 1):
        (tmp_path / f"{depth}").write_text(
            f"lxc.include = {tmp_path}/{depth + 1}\nlxc.tty.max = {depth}\n"
        )
    (tmp_path / f"{last + 1}").write_text("lxc.uts.name = deep\n")
    with pytest.raises(ConfigError, match="nested deeper") as caught:
        Config.read(f"{tmp_path}/0")
    assert caught.value.origin is not None
    assert caught.value.origin.file == f"{tmp_path}/{last}"
    assert Config.read(f"{tmp_path}/1").get("lxc.uts.name") == "deep"


def test_an_include_that_is_no_file(tmp_path) -> None:
    os.mkfifo(
        tmp_path / "directory.conf"
    )  # nobody writes: reading it must not wait for ever where we can tell
    for path, why in (
        ("/dev/zero", "more than 16 MiB"),
        (f"{tmp_path}/a\0b", "NUL"),
        ("/proc/self/mem", ""),
    ):
        error = read(f"\nlxc.include = {path}\n")
        assert isinstance(error, ConfigError)
        assert error.origin is not None
        assert error.origin.line == 2
        assert why in error.message


BYTES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([name.encode() for name in NAMES]),
        st.sampled_from([b" = ", b"=", b"\n", b"\r", b"\0", b"\xff\xfe", b"'", b'"', b"\n\n", b"#", b"lxc.", b"0x", b"veth", b"9" * 30]),
    ),
    max_size=30,
).map(b"".join)  # fmt: skip


@settings(deadline=None)
@given(data=BYTES, inner=BYTES)
def test_any_files_are_a_configuration_or_an_error_with_a_position(
    tmp_path_factory, data: bytes, inner: bytes
) -> None:
    directory = tmp_path_factory.mktemp("any")
    (directory / "inner").write_bytes(inner)
    (directory / "config").write_bytes(data + f"\nlxc.include = {directory}/inner\n".encode())
    result: Config | ConfigError
    try:
        result = Config.read(f"{directory}/config")
    except ConfigError as error:
        result = error
    if isinstance(result, ConfigError):
        unreadable = result.message.startswith("cannot read the configuration")
        assert result.origin is not None or unreadable
        return
    config = result
    saved = config.text()
    assert Config.parse(saved, file="again").text() == saved
    for assignment in config.assignments:
        try:
            config.get(assignment.key)
        except ConfigError:
            continue
    assert config.omit([a.origin for a in config.assignments]).assignments == ()
