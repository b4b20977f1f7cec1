"""Credentials on the real kernel: what is left of capabilities, ids, signals; who may enter a path; the reboot probe."""

from __future__ import annotations

import os
import subprocess

import pytest

from abilities import needs
from atoll import host
from atoll.config.text import Config
from atoll.linux import process
from atoll.linux.files import open_fd
from atoll.linux.process import CLONE_NEWPID, CLONE_NEWUSER
from atoll.plan import ROOTFS, Handler, Start
from atoll.resources import credentials, idmap
from isolation import kernel
from privileged.stepping import in_child

HOST = host.probe()
START = Start(name="c1", lxcpath="/", start_id="abcd1234", began=0.0, argv=("/init",))


def status(*fields: str) -> str:
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return " ".join(f"{field}={' '.join(lines[field].split())}" for field in fields)


def status_of_program(*fields: str) -> str:
    pattern = "|".join(fields)
    done = subprocess.run(
        ["grep", "-E", f"^({pattern}):", "/proc/self/status"],
        capture_output=True,
        text=True,
        check=True,
    )
    return " ".join(done.stdout.replace(":\t", "=").split())


def kept(text: str) -> Start:
    return START.replace(kept_capabilities=credentials.kept_mask(Config.parse(text), HOST))


# ----------------------------------------------------------------------------------- capabilities
@pytest.mark.isolated
@pytest.mark.parametrize(
    ("text", "mask"), [("lxc.cap.keep = kill chown\n", 0x21), ("lxc.cap.keep = none\n", 0)]
)
def test_kept_capabilities_bite_at_exec(text: str, mask: int) -> None:
    steps = credentials.drop_capabilities(Config.parse(text), HOST, kept(text))
    answer = in_child(
        steps, lambda _h: status_of_program("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")
    )
    assert (
        answer
        == f"CapInh={0:016x} CapPrm={mask:016x} CapEff={mask:016x} CapBnd={mask:016x} CapAmb={0:016x}"
    )


@pytest.mark.isolated
def test_dropped_capabilities_cannot_come_back_by_inheritance() -> None:
    """An exec by root permits what is inheritable, whatever the bounding set (capabilities(7))."""
    sets = process.capabilities()
    process.set_capabilities(sets.replace(inheritable=sets.permitted))
    text = "lxc.cap.drop = mknod sys_time\n"
    start = kept(text)
    steps = credentials.drop_capabilities(Config.parse(text), HOST, start)
    answer = in_child(steps, lambda _h: status_of_program("CapPrm"))
    everything = HOST.capabilities & start.kept_capabilities
    assert answer == f"CapPrm={everything:016x}"


@pytest.mark.isolated
def test_ambient_capabilities_reach_programs_of_the_set_up_and_not_init() -> None:
    config, on = Config.empty(), HOST.replace(uid=1000)

    def look(h: Handler) -> str:
        during = status_of_program("CapEff")
        for step in credentials.final(config, on, START)[-2:]:
            step.apply(h)
        return f"{during} {status_of_program('CapEff', 'CapInh', 'CapAmb')}"

    def keep_and_become() -> None:
        process.prctl(process.PR_SET_KEEPCAPS, 1)
        process.set_ids(1000, 1000, ())
        sets = process.capabilities()
        process.set_capabilities(sets.replace(effective=sets.permitted))

    keep_and_become()
    steps = credentials.ambient_capabilities(config, on, START)
    answer = in_child(steps, look)
    zero = f"{0:016x}"
    assert answer == f"CapEff={HOST.capabilities:016x} CapInh={zero} CapEff={zero} CapAmb={zero}"
    assert credentials.ambient_capabilities(config, HOST, START) == ()


@pytest.mark.isolated
def test_no_new_privileges() -> None:
    config = Config.parse("lxc.no_new_privs = 1\n")
    assert (
        in_child(
            credentials.no_new_privileges(config, HOST, START), lambda _h: status("NoNewPrivs")
        )
        == "NoNewPrivs=1"
    )


# -------------------------------------------------------------------------------------------- ids
@pytest.mark.isolated
def test_ids_and_death_signal() -> None:
    os.setgroups([1, 2])
    config = Config.parse("lxc.init.uid = 5\nlxc.init.gid = 6\nlxc.init.groups = 7,8\n")
    answer = in_child(
        credentials.final(config, HOST, START, death_signal=15),
        lambda _h: f"{status('Uid', 'Gid', 'Groups')} {process.get_death_signal()}",
    )
    assert answer == "Uid=5 5 5 5 Gid=6 6 6 6 Groups=7 8 15"


@pytest.mark.isolated
def test_no_groups_of_the_caller_are_left() -> None:
    os.setgroups([1, 2])
    answer = in_child(credentials.final(Config.empty(), HOST, START), lambda _h: status("Groups"))
    assert answer == "Groups="


@pytest.mark.isolated
@needs("userns")
def test_an_id_without_a_mapping() -> None:
    config = Config.parse(
        "lxc.idmap = u 0 100000 10\nlxc.idmap = g 0 100000 10\nlxc.init.uid = 10\n"
    )
    start = START.replace(id_map=idmap.mappings(config), clone_namespaces=CLONE_NEWUSER)
    answer = in_child(
        [*idmap.become_root(config, HOST, start), *credentials.final(config, HOST, start)],
        lambda _h: "became",
        flags=CLONE_NEWUSER,
        monitor=idmap.write(config, HOST, start),
    )
    assert answer == (
        "FAILED cannot become uid 10, gid 0: an id has no mapping in lxc.idmap | use ids that lxc.idmap maps"
    )


# ---------------------------------------------------------------------------------------- monitor
@pytest.mark.isolated
def test_init_dies_with_the_monitor_and_sees_that_it_lives() -> None:
    config = Config.empty()
    answer = in_child(
        credentials.death_signal(config, HOST, START),
        lambda _h: str(process.get_death_signal()),
        before=credentials.monitor_pidfd(config, HOST, START),
        flags=CLONE_NEWPID,
    )
    assert answer == "9"


@pytest.mark.isolated
def test_a_monitor_that_died_in_between_is_noticed() -> None:
    child = process.clone(lambda: os._exit(0))
    process.wait_pidfd(child.pidfd.fileno(), reap=False)
    answer = in_child(
        [credentials.VerifyMonitorAlive()],
        lambda _h: "alive",
        slots={credentials.MONITOR_PIDFD: child.pidfd},  # type: ignore[dict-item]  # Slot is invariant
        flags=CLONE_NEWPID,
    )
    assert answer == "FAILED cannot start: the monitor died | None"


@pytest.mark.isolated
def test_signals_are_as_for_a_fresh_program() -> None:
    process.block_signals(process.signal_bits(1, 2, 15))
    process.ignore_signal(13)
    steps = credentials.signal_mask(Config.empty(), HOST, START, mask=process.signal_bits(15))
    answer = in_child(steps, lambda _h: status("SigBlk", "SigIgn", "SigCgt"))
    masks = {
        name: int(mask, 16) for name, _, mask in (word.partition("=") for word in answer.split())
    }
    internal = process.signal_bits(32, 33)  # the C library's own, which nobody may touch
    assert {name: mask & ~internal for name, mask in masks.items()} == {
        "SigBlk": 1 << 14,
        "SigIgn": 0,
        "SigCgt": 0,
    }


@pytest.mark.isolated
@needs("pidns")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_the_reboot_probe_finds_what_every_kernel_since_3_4_can(user_namespace: bool) -> None:
    handler = Handler()
    with open("/proc/sys/kernel/ctrl-alt-del") as file:
        before = file.read()
    (step,) = credentials.reboot_support(
        HOST.replace(release="3.3.0"), user_namespace=user_namespace
    )
    step.apply(handler)
    assert handler[credentials.REBOOT_SUPPORTED] is True
    with open("/proc/sys/kernel/ctrl-alt-del") as file:
        assert file.read() == before


@pytest.mark.isolated
@pytest.mark.parametrize(("supported", "expected"), [(True, "True"), (False, "False")])
def test_sys_boot_is_dropped_only_where_reboot_would_be_the_machines(
    supported: bool, expected: str
) -> None:
    answer = in_child(
        credentials.drop_reboot(Config.empty(), HOST.replace(release="3.3.0"), START),
        lambda _h: str(process.bounding_has(22)),
        slots={credentials.REBOOT_SUPPORTED: supported},  # type: ignore[dict-item]  # Slot is invariant
    )
    assert answer == expected


# ------------------------------------------------------------------------------------------ paths
def traverse(leaf_mode: int, *commands: list[str]) -> str:
    """Start in /mnt/a/b/rootfs, a of mode 0700 by uid 77, as the root of a map from 100000."""
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    os.makedirs("/mnt/a/b/rootfs")
    os.chown("/mnt/a", 77, 77)
    os.chmod("/mnt/a", leaf_mode)
    os.chmod("/mnt", 0o755)
    for command in commands:
        subprocess.run(command, check=True)
    config = Config.parse("lxc.idmap = u 0 100000 10\nlxc.idmap = g 0 100000 10\n")
    start = START.replace(
        id_map=idmap.mappings(config), root_uid=100000, clone_namespaces=CLONE_NEWUSER,
        lxcpath="/mnt/a/b/rootfs",
    )  # fmt: skip
    no_rootfs = type("NoRootfs", (), {"get": lambda *_: "", "origin": lambda *_: None})()
    return in_child(
        [
            *idmap.become_root(config, HOST, start),
            *credentials.check_traversable(no_rootfs, HOST, start),
        ],
        lambda _h: "passed",
        flags=CLONE_NEWUSER,
        before=credentials.path_owners(no_rootfs, HOST, start),
        monitor=idmap.write(config, HOST, start),
    )


@pytest.mark.isolated
@needs("userns")
def test_path_that_the_mapped_root_may_not_pass() -> None:
    assert traverse(0o700) == (
        "FAILED cannot enter /mnt/a/b/rootfs as the container's root: /mnt/a (mode 0700, owner 77) lacks x for uid 100000"
        " | setfacl -m u:100000:x /mnt/a   (chmod o+x /mnt/a where there are no ACLs)"
    )


@pytest.mark.isolated
@needs("userns")
def test_path_that_all_may_pass() -> None:
    assert traverse(0o711) == "passed"


@pytest.mark.isolated
@needs("userns", "setfacl")
def test_the_fix_is_one() -> None:
    assert traverse(0o700, ["setfacl", "-m", "u:100000:x", "/mnt/a"]) == "passed"


@pytest.mark.isolated
@needs("userns")
def test_a_missing_path_is_another_steps_find() -> None:
    steps = [credentials.CheckPath(path="/nonexistent/x", uid=0)]
    assert in_child(steps, lambda _h: "passed") == "passed"


# ---------------------------------------------------------------------------------- directory, keys
def enter(path: str) -> str:
    """lxc.init.cwd = path in a tree where /link leads to the host's /etc and /file is no directory."""
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    os.makedirs("/mnt/srv/deep")
    os.makedirs("/mnt/etc")
    os.symlink("/etc", "/mnt/link")
    open("/mnt/file", "w").close()
    config = Config.parse(f"lxc.init.cwd = {path}\n")
    root = open_fd("/mnt", os.O_PATH)
    return in_child(
        credentials.working_directory(config, HOST, START),
        lambda _h: os.getcwd(),
        slots={ROOTFS: root},  # type: ignore[dict-item]  # Slot is invariant
    )


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/srv/deep", "/mnt/srv/deep"),
        ("/link", "/mnt/etc"),
        ("/../../etc", "/mnt/etc"),
        (
            "/nonex",
            "FAILED cannot enter working directory /nonex: it does not exist in the container | None",
        ),
        (
            "/file",
            "FAILED cannot enter working directory /file: it is not a directory in the container | None",
        ),
    ],
)
def test_working_directory_stays_in_the_container(path: str, answer: str) -> None:
    assert enter(path) == answer


@pytest.mark.isolated
def test_keyring_failure_does_not_end_the_start() -> None:
    answer = in_child(credentials.keyring(Config.empty(), HOST, START), lambda _h: "went on")
    assert answer == "went on"
