"""lxc.idmap: lines, checks of the whole, and who writes the maps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import host, plan
from atoll.config.text import Config
from atoll.errors import ConfigError, HostError
from atoll.host import SubIds
from atoll.linux import process
from atoll.linux.proc import IdMapping
from atoll.linux.process import CAPABILITIES, CLONE_NEWUSER
from atoll.plan import Start
from atoll.resources import idmap

ALL = (1 << 41) - 1
ROOT = host.probe().replace(
    uid=0, gid=0, user="root", capabilities=ALL, in_user_namespace=False, newuidmap="/usr/bin/newuidmap",
    newgidmap="/usr/bin/newgidmap", subuids=(), subgids=(),
)  # fmt: skip
JOE = ROOT.replace(
    uid=1000, gid=1000, user="joe", capabilities=0, subuids=(SubIds(first=100000, count=65536),),
    subgids=(SubIds(first=200000, count=65536),),
)  # fmt: skip
LINES = "lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 200000 65536\n"


def start(id_map: tuple[IdMapping, ...]) -> Start:
    return Start(
        name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",), id_map=id_map,
        clone_namespaces=CLONE_NEWUSER,
    )  # fmt: skip


def explained(config: Config, on: host.Host, id_map: tuple[IdMapping, ...]) -> list[str]:
    return [step.explain() for step in idmap.write(config, on, start(id_map))]


def test_lines_are_given_back_without_a_last_newline() -> None:
    config = Config.parse("lxc.idmap = u 0x0 0100000 65536\nlxc.idmap = g\t0 1  2\n")
    assert config.get("lxc.idmap") == "u 0 32768 65536\ng 0 1 2"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("u 0 100000", "failed to parse id mappings"),
        ("u 0 1 2 3", "failed to parse id mappings"),
        ("b 0 1 2", "invalid id mapping type: b"),
        ("uid 0 1 2", "invalid id mapping type: uid"),
        ("u -1 1 2", "not within"),
        ("u 0 1 x", "not a whole number"),
        ("u 0 1 0", "not within"),
        ("u 0 1 5000000000", "not within"),
        ("u 0 4294967290 100", "beyond the last id"),
    ],
)
def test_refused_lines(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(f"lxc.idmap = {value}\n")


ids = st.integers(0, 0x7FFFFFFF)


@given(
    st.builds(
        IdMapping,
        kind=st.sampled_from("ug"),
        inside=ids,
        outside=ids,
        count=st.integers(1, 0x7FFFFFFF),
    )
)
def test_round_trip(mapping: IdMapping) -> None:
    assert idmap._parse_mapping(idmap._show_mapping(mapping)) == mapping


@given(st.text(alphabet="ug 0123456789x-", max_size=30) | st.text())
def test_parser_fails_only_with_value_error(value: str) -> None:
    try:
        idmap._parse_mapping(value)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either end is right


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("lxc.idmap = u 0 100000 65536\n", "it maps no gids", 1),
        ("lxc.idmap = g 0 100000 65536\n", "it maps no uids", 1),
        (LINES + "lxc.idmap = u 65535 500000 1\n", "u 0 100000 65536 and u 65535 500000 1 share ids in the container", 3),
        (LINES + "lxc.idmap = g 70000 265535 9\n", "g 0 200000 65536 and g 70000 265535 9 share ids on the host", 3),
        (LINES + "".join(f"lxc.idmap = u {70000 + n} {n} 1\n" for n in range(340)), "341 lines of uids", 342),
    ],
)  # fmt: skip
def test_the_whole_is_checked(text: str, message: str, line: int) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        idmap.mappings(Config.parse(text))
    assert caught.value.origin is not None
    assert caught.value.origin.line == line


def test_ranges_that_touch_are_fine() -> None:
    config = Config.parse(LINES + "lxc.idmap = u 65536 165536 1\n")
    assert len(idmap.mappings(config)) == 3


def test_container_root() -> None:
    entries = idmap.mappings(Config.parse(LINES))
    assert idmap.container_root(entries) == (100000, 200000)
    assert idmap.container_root(()) == (0, 0)
    part = idmap.mappings(Config.parse("lxc.idmap = u 5 100 10\nlxc.idmap = g 0 200 10\n"))
    assert idmap.container_root(part, uid=7, gid=3) == (102, 200)
    with pytest.raises(ConfigError, match="it maps neither uid 0 nor 3"):
        idmap.container_root(part, uid=3)


def test_root_writes_directly_even_with_helpers() -> None:
    config = Config.parse(LINES)
    assert explained(config, ROOT, idmap.mappings(config)) == [
        "write the uid map 0 100000 65536",
        "write the gid map 0 200000 65536",
    ]


def test_a_user_asks_the_helpers() -> None:
    config = Config.parse(LINES)
    steps = idmap.write(config, JOE, start(idmap.mappings(config)))
    assert [step.explain() for step in steps] == [
        "write the uid map 0 100000 65536 with newuidmap",
        "write the gid map 0 200000 65536 with newgidmap",
    ]
    assert all(step.origin is not None and step.origin.line == 1 for step in steps)


def test_a_user_writes_his_own_id_directly_and_gives_up_setgroups() -> None:
    assert explained(Config.empty(), JOE.replace(newuidmap=None, newgidmap=None), idmap.rootless_mapping(JOE)) == [
        "write the uid map 0 1000 1",
        "deny setgroups in the container, as the kernel demands of an unprivileged gid map",
        "write the gid map 0 1000 1",
    ]  # fmt: skip


def test_helper_missing() -> None:
    config = Config.parse(LINES)
    with pytest.raises(
        HostError, match="no set-uid newuidmap in PATH, and user joe may map only itself"
    ) as caught:
        explained(config, JOE.replace(newuidmap=None), idmap.mappings(config))
    assert caught.value.missing == "newuidmap"


def test_no_user_namespace_no_map() -> None:
    config = Config.parse(LINES)
    shared = start(idmap.mappings(config)).replace(clone_namespaces=0)
    assert idmap.write(config, ROOT, shared) == ()
    assert explained(config, ROOT, ()) == []


def test_subordinate_mapping() -> None:
    assert [idmap._show_mapping(m) for m in idmap.subordinate_mapping(JOE)] == [
        "u 0 100000 65536", "g 0 200000 65536",
    ]  # fmt: skip
    assert idmap.subordinate_mapping(JOE.replace(subgids=())) == ()
    assert idmap.subordinate_mapping(JOE.replace(newgidmap=None)) == ()


def refusal(on: host.Host, lines: str = LINES) -> HostError:
    config = Config.parse(lines)
    step = idmap.write(config, on, start(idmap.mappings(config)))[0]
    assert isinstance(step, idmap.RunIdHelper)
    return step._refused("newuidmap: not allowed")


def test_no_subordinate_ids_text() -> None:
    error = refusal(JOE.replace(subuids=()))
    assert error.message == (
        "cannot write the uid map 0 100000 65536 with newuidmap: it refuses (not allowed);"
        " /etc/subuid allows user joe no ids"
    )
    assert error.fix == "as root: usermod --add-subuids 100000-165535 joe"


def test_newuidmap_refuses_text() -> None:
    error = refusal(
        JOE,
        "lxc.idmap = u 0 300000 10\nlxc.idmap = u 10 100000 5\nlxc.idmap = u 20 1000 1\nlxc.idmap = g 0 200000 1\n",
    )
    assert error.message == (
        "cannot write the uid map 0 300000 10, 10 100000 5, 20 1000 1 with newuidmap: it refuses (not allowed);"
        " /etc/subuid allows user joe 100000-165535"
    )
    assert error.fix == "as root: usermod --add-subuids 300000-300009 joe"


def test_no_fix_is_claimed_when_the_ranges_are_allowed() -> None:
    assert refusal(JOE).fix is None


def test_become_root() -> None:
    config = Config.parse(LINES)
    (step,) = idmap.become_root(config, ROOT, start(idmap.mappings(config)))
    assert step.explain() == "become uid 0 and gid 0 of the container"
    assert idmap.become_root(config, ROOT, start(())) == ()
    part = Config.parse(
        "lxc.idmap = u 5 100 10\nlxc.idmap = g 0 200 10\nlxc.init.uid = 7\nlxc.init.gid = 3\n"
    )
    (step,) = idmap.become_root(part, ROOT, start(idmap.mappings(part)))
    assert step.explain() == "become uid 7 and gid 0 of the container"


@pytest.mark.parametrize(("lenient", "fails"), [(True, False), (False, True)])
def test_denied_setgroups_is_tolerated_only_without_privilege(
    monkeypatch: pytest.MonkeyPatch, lenient: bool, fails: bool
) -> None:
    done: list[object] = []

    def set_ids(uid: int | None, gid: int | None, groups: tuple[int, ...] | None) -> None:
        done.append((uid, gid, groups))
        if groups is not None:
            raise PermissionError(1, "no")

    monkeypatch.setattr(process, "set_ids", set_ids)
    monkeypatch.setattr(process, "set_dumpable", done.append)
    monkeypatch.setattr(process, "set_death_signal", done.append)
    step = idmap.BecomeRoot(uid=0, gid=0, may_keep_groups=lenient)
    if fails:
        with pytest.raises(PermissionError):
            step.apply(plan.Handler())
    else:
        step.apply(plan.Handler())
        assert done == [(None, None, ()), (0, 0, None), True, 9]


def test_groups_denied() -> None:
    assert CAPABILITIES[6] == "setgid"
    own = idmap.rootless_mapping(JOE)
    assert idmap.groups_denied(JOE, own)
    assert not idmap.groups_denied(JOE.replace(capabilities=1 << 6), own)
    assert not idmap.groups_denied(JOE, ())
