"""Hooks that really run: arguments, environment, output, failure, in the monitor and inside."""

from __future__ import annotations

import os

import pytest

from atoll import host
from atoll.config.text import Config
from atoll.errors import HostError
from atoll.linux.files import open_fd
from atoll.linux.process import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUTS
from atoll.log import DEBUG
from atoll.plan import HOOK_ENVIRONMENT, NAMESPACES, ROOTFS, Handler, Start
from atoll.resources import hooks
from isolation import kernel
from privileged.stepping import in_child

HOST = host.probe()
START = Start(name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",))
SCRIPT = """#!/bin/sh
echo "args $*"
env | grep ^LXC_ | sort
echo "stdin $(readlink /proc/self/fd/0)" >/dev/null
echo complaint >&2
exit ${RET:-0}
"""


def script(path: str = "/mnt/hook", text: str = SCRIPT) -> None:
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755)


def run(
    text: str, point: str, *, environment: dict[str, str] | None = None, **more: object
) -> list[str]:
    """The DEBUG lines that the hooks of a point gave."""
    lines: list[str] = []
    handler = Handler(report=lambda level, line: lines.append(line) if level == DEBUG else None)
    handler[HOOK_ENVIRONMENT] = {"PATH": "/usr/bin:/bin", **(environment or {})}
    handler[NAMESPACES] = {
        name: open_fd(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("net", "mnt")
    }
    try:
        for step in hooks.run(Config.parse(text), HOST, START, point, **more):  # type: ignore[arg-type]  # passed on
            step.apply(handler)
    finally:
        for fd in handler[NAMESPACES].values():
            fd.close()
    return [line.partition(" says: ")[2] for line in lines]


@pytest.mark.isolated
def test_version_0() -> None:
    script()
    lines = run(
        "lxc.hook.pre-start = /mnt/hook own words\n", "pre-start", environment={"LXC_X": "1"}
    )
    assert lines == ["args own words c1 lxc pre-start", "LXC_X=1", "complaint"]


@pytest.mark.isolated
def test_version_1() -> None:
    script()
    text = "lxc.hook.version = 1\nlxc.hook.clone = /mnt/hook own\n"
    assert run(text, "clone", extra_arguments=("a", "b")) == [
        "args own a b", "LXC_HOOK_SECTION=lxc", "LXC_HOOK_TYPE=clone", "complaint",
    ]  # fmt: skip


@pytest.mark.isolated
def test_clone_gets_its_arguments_last() -> None:
    script()
    lines = run("lxc.hook.clone = /mnt/hook\n", "clone", extra_arguments=("a", "b"))
    assert lines[0] == "args c1 lxc clone a b"


@pytest.mark.isolated
def test_stop_is_told_the_namespaces() -> None:
    script(
        text="#!/bin/sh\nfor a; do case $a in *:*) readlink ${a#*:};; *) echo $a;; esac; done\necho $LXC_TARGET\n"
    )
    lines = run("lxc.hook.stop = /mnt/hook\n", "stop", target="reboot")
    expected = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "net")]
    assert lines == ["c1", "lxc", "stop", *expected, "reboot"]
    assert run("lxc.hook.version = 1\nlxc.hook.stop = /mnt/hook\n", "stop") == [""]


def failure(text: str, point: str = "pre-start", **more: object) -> tuple[str, str | None]:
    with pytest.raises(HostError) as caught:
        run(text, point, **more)  # type: ignore[arg-type]  # passed on
    return caught.value.message, caught.value.fix


@pytest.mark.isolated
def test_hook_fails() -> None:
    script()
    text = "lxc.hook.pre-start = /mnt/hook a\n"
    assert failure(text, environment={"RET": "3"}) == (
        "cannot run the pre-start hook /mnt/hook a: it exited with status 3: complaint", None,
    )  # fmt: skip


@pytest.mark.isolated
def test_hook_is_killed() -> None:
    script(text="#!/bin/sh\nkill -TERM $$\n")
    assert failure("lxc.hook.pre-start = /mnt/hook\n")[0] == (
        "cannot run the pre-start hook /mnt/hook: it was ended by signal 15"
    )


@pytest.mark.isolated
def test_the_first_failure_ends_the_chain() -> None:
    script(text="#!/bin/sh\necho $1 >> /mnt/ran; [ $1 != b ]\n")
    failure("".join(f"lxc.hook.pre-start = /mnt/hook {n}\n" for n in "abc"))
    with open("/mnt/ran") as file:
        assert file.read() == "a\nb\n"


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("command", "message", "fix"),
    [
        (
            "/mnt/none a",
            "there is no file /mnt/none",
            "make it, or take the hook out of the configuration",
        ),
        (
            "nosuchprogram",
            "there is no program nosuchprogram in PATH",
            "write the hook with its whole path",
        ),
        ("/mnt/plain", "/mnt/plain is not executable", "chmod +x /mnt/plain"),
        ("/mnt/hook", "the interpreter /no/sh in its first line does not exist", None),
        ("sh -c 'exit 127'", "it exited with status 127", None),
    ],
)
def test_hook_missing(command: str, message: str, fix: str | None) -> None:
    script(text="#!/no/sh\n")
    open("/mnt/plain", "w").close()
    found, remedy = failure(f"lxc.hook.pre-start = {command}\n")
    assert found == f"cannot run the pre-start hook {command}: {message}"
    assert remedy == fix


@pytest.mark.isolated
def test_inside_a_hook_has_the_containers_namespaces() -> None:
    script(text="#!/bin/sh\nreadlink /proc/self/ns/uts > /mnt/uts\necho $LXC_NAME $* > /mnt/args\n")
    flags = CLONE_NEWUTS | CLONE_NEWPID
    answer = in_child(
        hooks.run_inside(Config.parse("lxc.hook.mount = /mnt/hook x\n"), HOST, START, "mount"),
        lambda _h: os.readlink("/proc/self/ns/uts"),
        flags=flags,
        slots={HOOK_ENVIRONMENT: {"PATH": "/bin", "LXC_NAME": "c1"}},  # type: ignore[dict-item]  # Slot is invariant
    )
    with open("/mnt/uts") as uts, open("/mnt/args") as arguments:
        assert uts.read().strip() == answer != os.readlink("/proc/self/ns/uts")
        assert arguments.read() == "c1 x c1 lxc mount\n"


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("/bin/hk S", "ran"),
        ("/usr/bin/env", "FAILED cannot run the start hook /usr/bin/env: the container has no file /usr/bin/env | start hooks run inside the container: put the file into its rootfs"),
    ],
)  # fmt: skip
def test_start_hook_is_a_program_of_the_container(command: str, answer: str) -> None:
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    os.mkdir("/mnt/bin")
    with open("/bin/busybox", "rb") as source, open("/mnt/bin/sh", "wb") as target:
        target.write(source.read())
    with open("/mnt/bin/hk", "w") as file:
        file.write("#!/bin/sh\necho $* > /ran\n")
    for name in ("sh", "hk"):
        os.chmod(f"/mnt/bin/{name}", 0o755)
    root = open_fd("/mnt", os.O_PATH)

    def enter(_h: Handler) -> None:
        os.chroot("/mnt")
        os.chdir("/")

    steps = hooks.run_inside(Config.parse(f"lxc.hook.start = {command}\n"), HOST, START, "start")
    entering = type("Enter", (), {"apply": staticmethod(enter)})()
    found = in_child(
        [entering, *steps],
        lambda _h: "ran",
        flags=CLONE_NEWNS,
        slots={ROOTFS: root, HOOK_ENVIRONMENT: {}},  # type: ignore[dict-item]  # Slot is invariant
    )
    assert found == answer
    if answer == "ran":
        with open("/mnt/ran") as file:
            assert file.read() == "S c1 lxc start\n"
