from __future__ import annotations

import os
import termios
import threading
import tty
from errno import EBADF
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config.text import Config
from atoll.errors import CommandError, HostError
from atoll.linux import files
from atoll.linux.files import OwnedFd
from atoll.linux.proc import IdMapping
from atoll.loop import Loop
from atoll.plan import SYNC, Handler, Start
from atoll.resources import terminal
from atoll.resources.terminal import Console, carrier
from atoll.resources.terminal.carrier import ConsoleLog, Relay, Ring, TtyLeases


def config_of(text):
    return Config.parse(text, file="config")


def start_of(**fields):
    values = {"name": "c1", "lxcpath": "/var/lib/lxc", "start_id": "abcd1234", "began": 0.0}
    return Start(**{**values, "argv": ("/bin/sh",), "rootfs": "/mnt/rootfs", **fields})


class FakeHost:
    uid = 0


HOST: Any = FakeHost()


# ------------------------------------------------------------------------------------ keys and plans


@pytest.mark.parametrize(
    ("value", "stored"),
    [("5000", 8192), ("1MB", 1048576), ("auto", 131072), ("1", 4096), ("0", 4096), ("4096", 4096)],
)
def test_sizes_are_rounded_as_lxc_stores_them(value, stored):
    config = config_of(f"lxc.console.buffer.size = {value}\nlxc.console.size = {value}\n")
    assert (config[Console].buffer_size, config[Console].size) == (stored, stored)
    assert config.get("lxc.console.buffer.size") == str(stored)


def test_console_keys_have_lxcs_defaults():
    section = config_of("")[Console]
    assert (section.path, section.logfile, section.size, section.rotate) == (None, None, 0, False)
    assert terminal.wanted(config_of(""))
    assert not terminal.wanted(config_of("lxc.console.path = none\n"))


def explained(steps):
    return [step.explain() for step in steps]


def whole(text, **fields):
    c = (config_of(text), HOST, start_of(**fields))
    functions = ("host_console", "devpts", "console", "ttys", "send", "log_file", "receive")
    return {name: explained(getattr(terminal, name)(*c)) for name in functions}


def test_plan_of_a_distributions_container():
    text = (
        "lxc.pty.max = 1024\nlxc.tty.max = 4\nlxc.tty.dir = lxc\nlxc.console.logfile = /var/log/c\n"
    )
    assert whole(text) == {
        "host_console": [],
        "devpts": ["mount a devpts for 1028 ptys on /dev/pts and its ptmx on /dev/ptmx"],
        "console": [
            "allocate a pty of the container for the console",
            "bind the console on /dev/console and /dev/lxc/console",
        ],
        "ttys": [
            "allocate 4 ptys of the container for its ttys",
            "bind the ttys in /dev/lxc, with links from /dev",
        ],
        "send": ["send the devpts, the console and 4 ttys to the monitor"],
        "log_file": ["open the console's log file /var/log/c"],
        "receive": ["receive the devpts, the console and 4 ttys from init"],
    }


def test_without_ptys_the_console_is_the_hosts():
    plan = whole("lxc.console.path = /dev/tty9\n", root_uid=100000)
    assert plan["host_console"] == [
        "open /dev/tty9 to show the console on",
        "allocate a pty of the host for the console and give it to uid 100000",
    ]
    assert plan["console"] == ["bind the console on /dev/console"]
    assert plan["devpts"] == plan["ttys"] == plan["send"] == plan["receive"] == []


def test_lxc_execute_allocates_ttys_without_device_files():
    assert whole("lxc.pty.max = 9\nlxc.tty.max = 2\n", init_loop=True)["ttys"] == [
        "allocate 2 ptys of the container for its ttys"
    ]


def test_names_of_ttys_follow_the_console():
    config = config_of("lxc.pty.max = 1024\nlxc.tty.max = 3\n")
    assert terminal.names(config, start_of()) == ("pts/1", "pts/2", "pts/3")
    assert terminal.names(config, start_of(console=False)) == ("pts/0", "pts/1", "pts/2")


def test_group_of_the_ptys_only_where_it_is_mapped():
    text = "lxc.pty.max = 9\n"
    one = (
        IdMapping(kind="u", inside=0, outside=1, count=1),
        IdMapping(kind="g", inside=0, outside=1, count=1),
    )
    many = (IdMapping(kind="g", inside=0, outside=100000, count=65536),)
    for id_map, group in (((), 5), (one, -1), (many, 5)):
        (step,) = terminal.devpts(config_of(text), HOST, start_of(id_map=id_map))
        assert step.as_dict()["group"] == group


def test_many_ttys_travel_in_several_frames():
    frames: dict[str, Any] = {}

    class Wire:
        def send_fds(self, name, fds, text=""):
            assert name not in frames  # the monitor keeps by name what comes early
            frames[name] = (text, [os.dup(fd) for fd in fds])

        def receive_fds(self, name):
            text, fds = frames.pop(name)
            return text, [OwnedFd(fd) for fd in fds]

    c = (config_of("lxc.tty.max = 130\n"), HOST, start_of(console=False))
    sender, receiver = Handler(), Handler()
    sender[SYNC] = receiver[SYNC] = Wire()
    null = [OwnedFd(os.open("/dev/null", os.O_RDONLY)) for _ in range(130)]
    sender[terminal.TTYS] = tuple(
        terminal.Pty(ptmx=fd, name=f"pts/{n}") for n, fd in enumerate(null)
    )
    for step in terminal.send(*c):
        step.apply(sender)
    assert [len(fds) for _text, fds in frames.values()] == [60, 60, 10]
    for host_step in terminal.receive(*c):
        host_step.apply(receiver)
    assert [pty.name for pty in receiver[terminal.TTYS]] == [f"pts/{n}" for n in range(130)]
    for fd in null:
        fd.close()
    receiver.close()


# ------------------------------------------------------------------------------------------- leases


def leases(count):
    h = Handler()
    ptys = [terminal.Pty(ptmx=files.openpty()[0], name=f"pts/{n}") for n in range(count)]
    h[terminal.TTYS] = tuple(ptys)
    return TtyLeases(h), ptys


def test_leases():
    lent, ptys = leases(3)
    assert lent.acquire(2) == (2, ptys[1].ptmx.fileno())
    assert lent.acquire(-1) == (1, ptys[0].ptmx.fileno())
    assert lent.acquire(-1)[0] == 3
    for wanted, text in (
        (-1, "cannot open a tty: all ttys are in use"),
        (2, "cannot open tty 2: it is in use"),
        (4, "cannot open tty 4: the container has 3 ttys"),
        (-2, "cannot open tty -2: the container has 3 ttys"),
    ):
        with pytest.raises(CommandError, match=text) as caught:
            lent.acquire(wanted)
        assert caught.value.errno == EBADF
    lent.release(2)
    lent.release(2)
    assert lent.acquire(-1)[0] == 2


def test_leases_of_a_container_without_ttys():
    with pytest.raises(CommandError, match="the container has no ttys"):
        TtyLeases(Handler()).acquire(-1)


# ---------------------------------------------------------------------------------- ring buffer, log


@given(
    st.integers(1, 8).map(lambda n: 1 << n),
    st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 20), st.none())),
)
def test_ring_keeps_the_newest_bytes(size, actions):
    ring, model = Ring(size), b""
    for action in actions:
        if action is None:
            ring.clear()
            model = b""
        elif isinstance(action, int):
            expected = model[:action] if action else model
            assert ring.read(action) == expected
            model = model[len(expected) :]
        else:
            ring.write(action)
            model = (model + action)[-(size - 1) :]
        assert (len(ring), ring.peek(size)) == (len(model), model)


@given(st.lists(st.binary(max_size=60)), st.integers(1, 50), st.booleans())
@settings(max_examples=60)
def test_log_turns_at_its_cap(tmp_path_factory, chunks, limit, rotate):
    name = str(tmp_path_factory.mktemp("log") / "c")
    log = ConsoleLog(name, limit=limit, rotate=rotate)
    for chunk in chunks:
        log.write(chunk)
    log.close()
    whole = b"".join(chunks)
    kept = whole[(max(len(whole) - 1, 0) // limit) * limit :]
    with open(name, "rb") as file:
        assert file.read() == kept
    assert os.stat(name).st_mode & 0o777 == 0o600
    if rotate and len(whole) > limit:
        with open(f"{name}.1", "rb") as file:
            before = len(whole) - len(kept)
            assert file.read() == whole[before - limit : before]
    else:
        assert not os.path.exists(f"{name}.1")


def test_log_is_added_to(tmp_path):
    (tmp_path / "c").write_bytes(b"old ")
    for text in (b"one ", b"two"):
        log = ConsoleLog(str(tmp_path / "c"))
        log.write(text)
        log.close()
    assert (tmp_path / "c").read_bytes() == b"old one two"


def test_log_is_replaced_by_the_ring_buffer_at_the_end(tmp_path):
    ring = Ring(1 << 12)
    ring.write(b"abcdef")
    for limit, expected in ((4, b"abcd"), (100, b"abcdef"), (0, b"x")):
        log = ConsoleLog(str(tmp_path / str(limit)), limit=limit)
        log.write(b"x")
        log.replace(ring)
        log.close()
        assert (tmp_path / str(limit)).read_bytes() == expected


def test_capped_log_wants_a_regular_file():
    with pytest.raises(
        HostError, match="cannot cap the console's log file /dev/null: it is not a regular file"
    ):
        ConsoleLog("/dev/null", limit=4096)


def test_log_that_cannot_be_written_does_not_stop_the_console():
    log = ConsoleLog("/dev/full")
    log.write(b"x")
    log.write(b"y")
    assert log._file is None


# -------------------------------------------------------------------------------------------- relay


class Stage:
    """A raw pty with a relay on it, and a user behind pipes."""

    def __init__(self, *, user=True, **options):
        self.loop = Loop()
        self.ptmx, self.pts, _name = files.openpty()
        tty.setraw(self.pts.fileno())
        self.relay = Relay(self.loop, self.ptmx.fileno(), **options)
        self.from_user, self.typed = os.pipe()
        self.shown, self.to_user = os.pipe()
        if user:
            self.relay.attach(self.from_user, self.to_user)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.relay.close()
        self.loop.close()
        self.ptmx.close()
        self.pts.close()
        for fd in (self.from_user, self.typed, self.shown, self.to_user):
            try:
                os.close(fd)
            except OSError:
                pass

    def turn(self, done):
        """Serve the loop until done() is true."""
        while not done():
            assert self.loop.run_once(timeout=10), "nothing happens any more"

    def beside(self, *actions):
        """Run each action in a thread and serve the loop until all are done; their results."""
        results = [None] * len(actions)
        ended, wake = os.pipe()

        def run(number, action):
            results[number] = action()
            os.write(wake, b".")

        threads = [threading.Thread(target=run, args=pair) for pair in enumerate(actions)]
        left = list(threads)

        def count(_events):
            os.read(ended, 1)
            left.pop()

        self.loop.watch(ended, count)
        for thread in threads:
            thread.start()
        self.turn(lambda: not left)
        self.loop.forget(ended)
        for thread in threads:
            thread.join()
        os.close(ended)
        os.close(wake)
        return results


def read_all(fd, count):
    data = b""
    while len(data) < count:
        data += os.read(fd, 65536)
    return data


@given(st.lists(st.binary(min_size=1, max_size=9000), max_size=12), st.booleans())
@settings(max_examples=25, deadline=None)
def test_relay_loses_and_invents_nothing(chunks, back):
    """Either way, with a slow reader in a thread of its own."""
    whole = b"".join(chunks)
    with Stage() as stage:
        source, sink = (
            (stage.typed, stage.pts.fileno()) if back else (stage.pts.fileno(), stage.shown)
        )

        def write():
            for chunk in chunks:
                while chunk:
                    chunk = chunk[os.write(source, chunk) :]

        assert stage.beside(write, lambda: read_all(sink, len(whole)))[1] == whole


def flood(fd, count):
    left = count
    while left:
        left -= os.write(fd, bytes(min(left, 4096)))


def test_without_a_user_the_container_never_blocks(tmp_path):
    log, ring = ConsoleLog(str(tmp_path / "log")), Ring(1 << 13)
    with Stage(user=False, log_file=log, ring=ring) as stage:
        stage.beside(lambda: flood(stage.pts.fileno(), 1 << 20))
        stage.relay.drain()
        assert (tmp_path / "log").stat().st_size == 1 << 20
        assert len(ring) == (1 << 13) - 1


def test_a_user_who_does_not_read_stops_the_container_and_memory_stays_bounded():
    with Stage() as stage:
        os.set_blocking(stage.pts.fileno(), False)
        written = 0
        while not stage.relay._paused:
            try:
                written += os.write(stage.pts.fileno(), bytes(4096))
            except BlockingIOError:
                assert stage.loop.run_once(timeout=10)
        with pytest.raises(BlockingIOError):
            for _ in range(1000):
                written += os.write(stage.pts.fileno(), bytes(4096))
        while stage.loop.run_once(timeout=0):
            pass
        assert stage.relay._paused
        assert len(stage.relay._to_user) < carrier.HIGH_WATER + 2 * carrier.READ_SIZE
        os.set_blocking(stage.pts.fileno(), True)
        (got,) = stage.beside(lambda: read_all(stage.shown, written))
        assert len(got) == written


def test_a_user_who_leaves_is_forgotten_and_the_container_goes_on():
    with Stage() as stage:
        os.close(stage.shown)
        stage.beside(lambda: flood(stage.pts.fileno(), 1 << 18))
        assert stage.relay._output is None


def test_a_getty_may_close_and_open_its_terminal_again():
    with Stage() as stage:
        name = os.ttyname(stage.pts.fileno())
        os.write(stage.pts.fileno(), b"first")
        stage.pts.close()
        turns = 0
        while stage.loop.run_once(timeout=0):
            turns += 1
            assert turns < 10, "the hang-up is reported again and again"
        assert os.read(stage.shown, 100) == b"first"
        assert not stage.relay.ended
        again = OwnedFd(os.open(name, os.O_RDWR | os.O_NOCTTY))
        tty.setraw(again.fileno())
        os.write(again.fileno(), b"second")
        (got,) = stage.beside(lambda: read_all(stage.shown, 6))
        assert got == b"second"
        again.close()


def test_a_commands_terminal_ends_when_it_is_closed_and_everything_was_shown():
    ended = []
    with Stage(lasting=False, on_end=lambda: ended.append(True)) as stage:
        os.write(stage.pts.fileno(), b"last words")
        stage.pts.close()
        stage.turn(lambda: ended)
        assert os.read(stage.shown, 100) == b"last words"
        assert ended == [True]


def test_finish_delivers_what_is_left():
    with Stage() as stage:
        os.write(stage.pts.fileno(), bytes(3000))
        stage.relay.finish()
        assert len(os.read(stage.shown, 65536)) == 3000
        stage.relay.close()


def test_output_may_be_a_regular_file_and_input_nothing(tmp_path):
    with Stage(user=False) as stage, open(tmp_path / "out", "wb") as out, open("/dev/null") as null:
        out.write(b"before ")
        out.flush()
        stage.relay.attach(null.fileno(), out.fileno())
        os.write(stage.pts.fileno(), b"after")
        stage.relay.finish()
        assert (tmp_path / "out").read_bytes() == b"before after"


def test_input_may_be_a_regular_file(tmp_path):
    (tmp_path / "in").write_bytes(bytes(200000))
    with Stage(user=False) as stage, open(tmp_path / "in", "rb") as file:
        stage.relay.attach(file.fileno(), stage.to_user)
        (got,) = stage.beside(lambda: read_all(stage.pts.fileno(), 200000))
        assert len(got) == 200000


def test_the_users_own_descriptors_stay_blocking():
    with Stage() as stage:
        assert os.get_blocking(stage.from_user)
        assert os.get_blocking(stage.to_user)
        assert not os.get_blocking(stage.relay._output.fileno())


def test_terminal_is_raw_while_attached_and_gives_its_size():
    user, user_side, _name = files.openpty()
    files.set_window_size(user_side.fileno(), 33, 99)
    before = termios.tcgetattr(user_side.fileno())
    with Stage(user=False) as stage:
        stage.relay.attach(user_side.fileno(), user_side.fileno())
        assert (
            termios.tcgetattr(user_side.fileno())[3]
            & (termios.ECHO | termios.ISIG | termios.ICANON)
            == 0
        )
        assert files.window_size(stage.pts.fileno()) == (33, 99)
        files.set_window_size(user_side.fileno(), 10, 20)
        stage.relay.resize()
        assert files.window_size(stage.pts.fileno()) == (10, 20)
        os.write(user.fileno(), b"\x03")
        (got,) = stage.beside(lambda: os.read(stage.pts.fileno(), 1))
        assert got == b"\x03"
        stage.relay.close()
        assert termios.tcgetattr(user_side.fileno()) == before
    user.close()
    user_side.close()


def test_failing_attach_restores_the_terminal(monkeypatch):
    user, user_side, _name = files.openpty()
    before = termios.tcgetattr(user_side.fileno())
    with Stage(user=False) as stage:
        monkeypatch.setattr(
            stage.loop, "watch", lambda *_a, **_k: (_ for _ in ()).throw(OSError(5, "broken"))
        )
        with pytest.raises(OSError, match="broken"):
            stage.relay.attach(user_side.fileno(), user_side.fileno())
        assert termios.tcgetattr(user_side.fileno()) == before
        assert stage.relay._output is None
    user.close()
    user_side.close()


def test_relay_shows_the_console_on_the_configured_terminal(tmp_path):
    user, user_side, name = files.openpty()
    ptmx, pts, _name = files.openpty()
    config = config_of(f"lxc.console.path = /dev/{name}\nlxc.console.logfile = {tmp_path}/log\n")
    c = (config, HOST, start_of())
    h, loop = Handler(), Loop()
    for step in (terminal.host_console(*c)[0], *terminal.log_file(*c)):
        step.apply(h)
    h[terminal.CONSOLE] = terminal.Pty(ptmx=ptmx, name="pts/0")
    relay = carrier.relay(config, h, loop, (0, 1, 2))
    assert relay is not None
    tty.setraw(pts.fileno())
    os.write(pts.fileno(), b"hello")
    relay.finish()
    assert os.read(user.fileno(), 100) == b"hello"
    assert (tmp_path / "log").read_bytes() == b"hello"
    h.close()
    loop.close()
    assert carrier.relay(config, Handler(), Loop(), None) is None
    for fd in (user, user_side, pts):
        fd.close()


def test_the_console_cannot_be_shown_on_a_file(tmp_path):
    (tmp_path / "x").touch()
    step = terminal.OpenConsoleUser(path=str(tmp_path / "x"))
    with pytest.raises(
        HostError, match=f"cannot show the console on {tmp_path}/x: it is not a terminal"
    ):
        step.apply(Handler())
