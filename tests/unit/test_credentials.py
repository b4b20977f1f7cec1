"""lxc.cap, init, environment, keyring: values as LXC gives them back, the bounding set, and the planned steps."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import host
from atoll.config.text import Config
from atoll.errors import ConfigError
from atoll.linux.proc import IdMapping
from atoll.linux.process import CAPABILITIES
from atoll.plan import HOOK_ENVIRONMENT, Handler, Slot, Start
from atoll.resources import credentials

HOST = host.probe().replace(
    uid=0, capabilities=(1 << 41) - 1, last_capability=40, release="6.1.0-13-amd64"
)
ALL = (1 << 41) - 1
START = Start(name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",))
MAPPED = START.replace(
    id_map=(IdMapping(inside=0, outside=100000, count=9), IdMapping(inside=0, outside=100000, count=9, kind="g")),
    root_uid=100000,
)  # fmt: skip


def bit(name: str) -> int:
    return 1 << CAPABILITIES.index(name)


# ----------------------------------------------------------------------------------- capabilities
@pytest.mark.parametrize(
    ("text", "key", "shown"),
    # Observed with lxc-info -c of 5.0.2.
    [
        (
            "lxc.cap.drop = sys_boot  mknod\nlxc.cap.drop = 12",
            "lxc.cap.drop",
            "sys_boot\nmknod\n12\n",
        ),
        ("lxc.cap.drop = 0x3", "lxc.cap.drop", "0x3\n"),
        ("lxc.cap.keep = none", "lxc.cap.keep", ""),
        ("lxc.cap.keep = kill none", "lxc.cap.keep", ""),
        ("lxc.cap.keep = none kill", "lxc.cap.keep", "kill\n"),
        ("lxc.cap.drop = mknod\nlxc.cap.keep =\nlxc.cap.keep = kill", "lxc.cap.keep", "kill\n"),
        ("lxc.cap.keep = mknod\nlxc.cap.drop =\nlxc.cap.drop = kill", "lxc.cap.drop", "kill\n"),
    ],
)
def test_capabilities_are_given_back_as_lxc_does(text: str, key: str, shown: str) -> None:
    assert Config.parse(text + "\n").get(key) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lxc.cap.drop = bogus", "invalid capability specified: bogus"),
        ("lxc.cap.drop = SYS_ADMIN", "invalid capability specified: SYS_ADMIN"),
        ("lxc.cap.keep = cap_x", "invalid capability specified: cap_x"),
        ("lxc.cap.drop = 99", "invalid capability specified: 99"),
        ("lxc.cap.drop = none", 'the "none" keyword is only valid when keeping caps'),
        ("lxc.cap.keep = kill\nlxc.cap.drop = mknod", "mutually exclusive"),
        ("lxc.cap.drop = kill\nlxc.cap.keep = mknod", "mutually exclusive"),
        ("lxc.cap.keep = none\nlxc.cap.drop = kill", "mutually exclusive"),
    ],
)
def test_refused_capabilities(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(text + "\n")


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("", ALL),
        ("lxc.cap.drop = mknod sys_time 0x3", ALL & ~bit("mknod") & ~bit("sys_time") & ~(1 << 3)),
        ("lxc.cap.keep = kill chown", 0x21),
        ("lxc.cap.keep = none", 0),
        ("lxc.cap.keep = chown none kill", bit("kill")),
    ],
)
def test_kept_mask(text: str, mask: int) -> None:
    assert credentials.kept_mask(Config.parse(text + "\n"), HOST) == mask


def test_kept_mask_knows_the_kernels_last() -> None:
    old = HOST.replace(last_capability=37)
    assert credentials.kept_mask(Config.empty(), old) == (1 << 38) - 1
    assert credentials.kept_mask(Config.parse("lxc.cap.keep = bpf kill\n"), old) == bit("kill")
    with pytest.raises(
        ConfigError, match="invalid capability specified: 40, this kernel's last is 37"
    ) as caught:
        credentials.kept_mask(Config.parse("lxc.cap.drop = 3\nlxc.cap.drop = 40\n"), old)
    assert str(caught.value.origin) == "config:2"


@given(st.sets(st.sampled_from(CAPABILITIES)))
def test_drop_and_keep_complement_each_other(names: set[str]) -> None:
    words = " ".join(sorted(names))
    dropped = credentials.kept_mask(Config.parse(f"lxc.cap.drop = {words}\n"), HOST)
    kept = credentials.kept_mask(Config.parse(f"lxc.cap.keep = none {words}\n"), HOST)
    assert dropped ^ kept == ALL


def test_drop_capabilities_says_the_shorter_list() -> None:
    def explained(kept: int) -> list[str]:
        start = START.replace(kept_capabilities=kept)
        return [
            step.explain() for step in credentials.drop_capabilities(Config.empty(), HOST, start)
        ]

    assert explained(ALL) == []
    assert explained(ALL & ~bit("mknod")) == ["drop the capabilities mknod"]
    assert explained(0x21) == ["keep only the capabilities chown kill"]
    assert explained(0) == ["keep only the capabilities none"]


# ------------------------------------------------------------------------------- init, environment
@pytest.mark.parametrize(
    ("value", "shown"),
    [("5,6", "5,6"), ("5, 6", "5,6"), (",5", "5"), ("5,,6", "5,6"), ("0x10", "16")],
)
def test_groups_are_given_back_as_lxc_does(value: str, shown: str) -> None:
    assert Config.parse(f"lxc.init.groups = {value}\n").get("lxc.init.groups") == shown


@pytest.mark.parametrize("value", ["5 6", "x", "-1", "1,x", "4294967295"])
def test_refused_groups(value: str) -> None:
    with pytest.raises(ConfigError, match="failed to parse group"):
        Config.parse(f"lxc.init.groups = {value}\n")


def test_init_keys() -> None:
    config = Config.parse(
        "lxc.init.uid = 010\nlxc.init.gid = 0x10\nlxc.init.cwd = /srv//x/./y/\nlxc.init.cmd = /bin/x  -a\n"
        "lxc.init.groups = 5,6\nlxc.init.groups = 7\n"
    )
    names = ("uid", "gid", "cwd", "cmd", "groups")
    assert [config.get(f"lxc.init.{name}") for name in names] == [
        "8",
        "16",
        "/srv/x/y",
        "/bin/x  -a",
        "5,6,7",
    ]


def test_environment_takes_the_callers_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "one=two")
    config = Config.parse("lxc.environment = A = b\nlxc.environment = TAKEN\n")
    monkeypatch.setenv("TAKEN", "later")
    assert config.get("lxc.environment") == "A = b\nTAKEN=one=two\n"


def test_environment_refuses_what_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match="NOT_THERE is not set in the caller's environment"):
        Config.parse("lxc.environment = NOT_THERE\n")


def final_environment(text: str, **start: object) -> dict[str, str]:
    handler = Handler()
    ttys = Slot[str]("ttys")
    handler[ttys] = "pts/1 pts/2"
    step = credentials.final(Config.parse(text), HOST, START.replace(**start), ttys=ttys)[0]
    step.apply(handler)
    return handler[credentials.INIT_ENVIRONMENT]


def test_init_has_no_variable_of_the_monitor() -> None:
    assert "PATH" in os.environ
    assert final_environment("") == {"container": "lxc", "container_ttys": "pts/1 pts/2"}


def test_order_of_initial_variables() -> None:
    text = (
        "lxc.environment = A=1\nlxc.environment = B=1\nlxc.environment.runtime = B=2\nlxc.environment.hooks = H=1\n"
        "lxc.environment = =x\nlxc.environment = C=1\n"
    )
    assert final_environment(text, extra_environment=("C=3", "container=podman")) == {
        "A": "1", "B": "2", "C": "3", "container": "podman", "container_ttys": "pts/1 pts/2",
    }  # fmt: skip


def test_hooks_inside_get_theirs() -> None:
    text = "lxc.environment = A=1\nlxc.environment.hooks = H=1\nlxc.environment.runtime = R=1\n"
    handler = Handler()
    handler[HOOK_ENVIRONMENT] = {"A": "0", "PATH": "/bin"}
    for step in credentials.hook_environment(Config.parse(text), HOST, START):
        step.apply(handler)
    assert handler[HOOK_ENVIRONMENT] == {"A": "1", "PATH": "/bin", "H": "1"}
    assert credentials.hook_environment(Config.empty(), HOST, START) == ()


def test_explanations_show_no_values() -> None:
    config = Config.parse("lxc.environment = TOKEN=secret\nlxc.environment.hooks = OTHER=secret\n")
    start = START.replace(extra_environment=("MORE=secret",))
    steps = [
        *credentials.final(config, HOST, start),
        *credentials.hook_environment(config, HOST, start),
    ]
    text = "\n".join(step.explain() for step in steps)
    assert "secret" not in text
    assert all(name in text for name in ("TOKEN", "OTHER", "MORE"))


def ids(text: str, start: Start = START, on: host.Host = HOST) -> list[str]:
    steps = credentials.final(Config.parse(text), on, start)
    return [step.explain() for step in steps if isinstance(step, credentials.SetIds)]


def test_ids_of_init() -> None:
    assert ids("") == ["become uid 0, gid 0 and no other groups"]
    assert ids("lxc.init.uid = 5\nlxc.init.gid = 6\nlxc.init.groups = 7,8\n") == [
        "become uid 5, gid 6 and groups 7,8"
    ]


def test_ids_in_a_user_namespace() -> None:
    assert ids("", MAPPED) == []
    assert ids("lxc.init.uid = 5\n", MAPPED) == ["become uid 5, gid 0"]
    assert ids("lxc.init.groups = 7\n", MAPPED) == ["become uid 0, gid 0 and groups 7"]


def test_groups_stay_for_who_may_not_change_them() -> None:
    assert ids("", START, HOST.replace(capabilities=0)) == ["become uid 0, gid 0"]


def test_last_steps_in_order() -> None:
    steps = credentials.final(Config.empty(), HOST, START, death_signal=0)
    assert [type(step).__name__ for step in steps] == ["SetEnvironment", "SetIds", "SetDeathSignal"]
    assert steps[-1].explain() == "outlive the monitor"
    steps = credentials.final(Config.empty(), HOST.replace(uid=1000), START)
    assert [type(step).__name__ for step in steps][-2:] == [
        "ClearAmbientCapabilities",
        "SetDeathSignal",
    ]


# -------------------------------------------------------------------------------------- the others
def test_keyring_is_new_unless_told_otherwise() -> None:
    assert len(credentials.keyring(Config.empty(), HOST, START)) == 1
    assert credentials.keyring(Config.parse("lxc.keyring.session = 1\n"), HOST, START) == ()
    assert Config.parse("lxc.keyring.session = 1\n").get("lxc.keyring.session") == "1"


def test_no_new_privileges() -> None:
    assert credentials.no_new_privileges(Config.empty(), HOST, START) == ()
    (step,) = credentials.no_new_privileges(Config.parse("lxc.no_new_privs = 1\n"), HOST, START)
    assert str(step.origin) == "config:1"


@pytest.mark.parametrize(
    ("release", "step", "drops"),
    [
        ("6.1.0-13-amd64", "TrustReboot", 0), ("3.4", "TrustReboot", 0), ("3.10.0", "TrustReboot", 0),
        ("3.3.8", "ProbeReboot", 1), ("2.6.32-5", "ProbeReboot", 1),
    ],
)  # fmt: skip
def test_reboot_is_probed_only_on_old_kernels(release: str, step: str, drops: int) -> None:
    on = HOST.replace(release=release)
    (planned,) = credentials.reboot_support(on)
    assert type(planned).__name__ == step
    assert release in planned.explain()
    assert len(credentials.drop_reboot(Config.empty(), on, START)) == drops


def test_paths_to_check() -> None:
    config = Config.parse("lxc.rootfs.path = dir:/srv/c1/rootfs\n")
    steps = credentials.check_traversable(config, HOST, MAPPED)
    assert [step.explain() for step in steps] == [
        "check that the container's root may enter /l",
        "check that the container's root may enter /srv/c1/rootfs",
    ]
    assert [step.origin.line if step.origin else None for step in steps] == [None, 1]
    assert len(credentials.path_owners(config, HOST, MAPPED)) == 1
    assert credentials.path_owners(config, HOST, START) == ()


@pytest.mark.parametrize(
    ("path", "prefixes"),
    [("/", ["/"]), ("/a/b", ["/", "/a", "/a/b"]), ("/a//b/", ["/", "/a", "/a/b"])],
)
def test_prefixes(path: str, prefixes: list[str]) -> None:
    assert credentials._prefixes(path) == prefixes
