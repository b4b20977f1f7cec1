"""lifecycle/commands.py, server.py, client.py: frames, the server against raw bytes, the client against both and impostors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import CommandError, StateError
from atoll.lifecycle import answers, commands
from atoll.lifecycle import client as client_module
from atoll.lifecycle import server as server_module
from atoll.lifecycle.client import CommandClient, active_containers, wait_states
from atoll.lifecycle.commands import (
    RUNNING,
    STARTING,
    STOPPED,
    STOPPING,
    THAWED,
    CgroupContext,
    address,
)
from atoll.lifecycle.server import CommandServer
from atoll.loop import Loop

LXCPATH = f"/atoll-test-{os.getpid()}"


class Fake:
    """A container whose answers are known. Its descriptors are all the same pipe's."""

    def __init__(self, name="c1", lxcpath=LXCPATH):
        self.name, self.lxcpath = name, lxcpath
        self.state, self.init_pid, self.clone_flags = RUNNING, 4242, 0x6E020000
        self.fd, self.other = os.pipe()
        self.stopped, self.leased, self.released = 0, [], []
        self.log = b"boot\n"
        self.broken: BaseException | None = None
        self.unified = False
        self.server: CommandServer | None = None

    def close(self):
        os.close(self.fd)
        os.close(self.other)

    def init_pidfd(self):
        return self.fd

    def config_item(self, key):
        if self.broken:
            raise self.broken
        return {"lxc.arch": "x86_64", "lxc.empty": ""}.get(key)

    def stop(self):
        if self.broken:
            raise self.broken
        self.stopped += 1

    def set_state(self, state):
        self.state = RUNNING if state == THAWED else state
        if self.server is not None:
            self.server.notify(state)

    def console(self, ttynum):
        if ttynum > 4:
            return None
        tty = 3 if ttynum == -1 else ttynum
        self.leased.append(tty)
        return tty, self.fd

    def release_console(self, tty):
        self.released.append(tty)

    def console_log(self, *, clear, read, limit, write_file):
        data = self.log[:limit] if limit else self.log
        self.log = b"" if clear else self.log
        return data

    def cgroup_path(self, controller, *, limit):
        return {"memory": "/lxc.limit.c1" if limit else "/lxc.payload.c1"}.get(controller)

    def cgroup_context(self):
        return CgroupContext(layout=2, utilities=0, fds=(self.fd, self.other))

    def cgroup_fd(self, controller, kind, *, limit):
        return self.fd if controller == "memory" else None

    def cgroup2_fd(self, *, limit):
        return self.fd if self.unified else None

    def devpts_fd(self):
        return None


@pytest.fixture
def container():
    fake = Fake()
    yield fake
    fake.close()


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def server(container, loop):
    made = CommandServer.listen(LXCPATH, "c1")
    made.serve(loop, container)
    container.server = made
    yield made
    made.close()


@pytest.fixture
def running(server, loop):
    """The server in a thread of its own; `with running.paused()` gives its loop back to the test."""
    stopper, stopping = os.pipe()
    done = []
    loop.watch(stopper, lambda _events: done.append(True))

    def run():
        while not done:
            loop.run_once()

    thread = threading.Thread(target=run)
    thread.start()
    yield server
    os.write(stopping, b"x")
    thread.join()
    os.close(stopper)
    os.close(stopping)


def settle(loop):
    while loop.run_once(0):
        pass


def connect(name="c1"):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    try:
        sock.connect(address(LXCPATH, name))
    except OSError:
        sock.close()
        raise
    return sock


def frame(number, length=0, value=0):
    return struct.pack("=iiQ", number, length, value & 2**64 - 1)


def ask(loop, data, *more):
    """Send, let the server work, return (frame fields, data, descriptors, is it closed?)."""
    with connect() as sock:
        sock.sendall(data)
        for part in more:
            settle(loop)
            sock.sendall(part)
        settle(loop)
        sock.setblocking(False)
        return read_reply(sock)


def read_reply(sock):
    try:
        head, fds, _flags, _peer = socket.recv_fds(sock, 16, 20)
    except BlockingIOError:
        return None, b"", 0, False
    except ConnectionResetError:
        return None, b"", 0, True
    for fd in fds:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) >= 0
        os.close(fd)
    if not head:
        return None, b"", 0, True
    data, closed = b"", False
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while part := sock.recv(65536):
            data += part
        closed = True
    ret, length, value = struct.unpack("=iiQ", head)
    assert length == len(data)
    assert bool(value) or not data
    return (ret, value), data, len(fds), closed


# ------------------------------------------------------------------------------------- frames


def test_sizes_are_liblxcs():
    sizes = [
        item.size
        for item in (
            commands.FRAME, commands.CREDENTIALS, commands.WANTED, commands.MESSAGE,
            commands.CONSOLE, commands.DEVICE, commands.CONTEXT, commands.HIERARCHY,
        )
    ]  # fmt: skip
    assert sizes == [16, 12, 32, 264, 24, 40, 96, 80]
    assert len(answers.ANSWERS) == 27


def test_address():
    assert address("/var/lib/lxc", "c1") == b"\0/var/lib/lxc/c1/command"
    assert address("/var/lib/lxc/", "c1") == b"\0/var/lib/lxc//c1/command"
    fits = "x" * (105 - len("/p//command"))
    assert address("/p", fits) == b"\0/p/" + fits.encode() + b"/command"
    assert len(address("/p", fits)) == 106
    hashed = address("/p", fits + "x")
    assert hashed.startswith(b"\0lxc/")
    assert hashed.endswith(b"/command")
    assert len(hashed) == 1 + 4 + 16 + 8


def test_fnv1a_has_the_published_values():
    assert commands.fnv1a(b"") == 0xCBF29CE484222325
    assert commands.fnv1a(b"a") == 0xAF63DC4C8601EC8C
    assert commands.fnv1a(b"foobar") == 0x85944171F73967E8


# ------------------------------------------------------------------------------------- server


@pytest.mark.parametrize(
    ("number", "data", "value", "reply"),
    [
        (0, b"", 2, ((0, 2), b"", 1, False)),
        (0, b"", -1, ((0, 3), b"", 1, False)),
        (0, b"", 9, ((-9, 0), b"", 0, True)),
        (1, b"", 0, (None, b"", 0, True)),
        (2, b"", 0, (None, b"", 0, False)),
        (3, b"", 0, ((0, 2), b"", 0, True)),
        (4, b"", 0, ((0, 4242), b"", 0, True)),
        (5, b"", 0, ((0, 0x6E020000), b"", 0, True)),
        (6, b"memory\0", 0, ((0, 1), b"/lxc.payload.c1\0", 0, True)),
        (6, b"nope\0", 0, (None, b"", 0, True)),
        (6, b"", 0, (None, b"", 0, True)),
        (6, b"memory", 0, ((-22, 0), b"", 0, True)),
        (7, b"lxc.arch\0", 0, ((0, 1), b"x86_64\0", 0, True)),
        (7, b"lxc.empty\0", 0, ((-1, 0), b"", 0, True)),
        (7, b"lxc.none\0", 0, ((-1, 0), b"", 0, True)),
        (7, b"lxc\0arch\0", 0, ((-22, 0), b"", 0, True)),
        (7, b"", 0, ((-22, 0), b"", 0, True)),
        (8, b"", 0, ((0, 1), b"c1\0", 0, True)),
        (9, b"", 0, ((0, 1), LXCPATH.encode() + b"\0", 0, True)),
        (10, struct.pack("=8i", 0, 0, 1, 0, 0, 0, 0, 0), 0, ((2, 2), b"", 0, True)),
        (10, struct.pack("=8i", 1, 0, 2, 0, 0, 0, 0, 0), 0, ((8, 8), b"", 0, False)),
        (10, b"short", 0, (None, b"", 0, True)),
        (11, struct.pack("=BB6xQB7x", 0, 1, 2, 0), 0, ((0, 1), b"bo", 0, True)),
        (11, b"x" * 23, 0, ((-22, 0), b"", 0, True)),
        (12, b"", 6, ((0, 0), b"", 0, True)),
        (12, b"", 99, ((-22, 0), b"", 0, True)),
        (13, b"", 0, (None, b"", 0, False)),
        (14, b"x" * 40, 0, ((-1, 0), b"", 0, True)),
        (14, b"x" * 39, 0, ((-22, 0), b"", 0, True)),
        (15, b"", 0, ((-2, 0), b"", 0, True)),
        (16, b"", 0, ((-2, 0), b"", 0, True)),
        (17, b"", 0, ((-22, 0), b"", 0, True)),
        (18, b"", 0, ((0, 0), b"", 1, True)),
        (19, b"memory\0", 0, ((0, 1), b"/lxc.limit.c1\0", 0, True)),
        (20, b"", 0, ((-22, 0), b"", 0, True)),
        (21, b"", 0, ((-9, 0), b"", 0, True)),
        (22, b"", 0, ((-9, 0), b"", 0, True)),
        (24, struct.pack("=iIii64s", 2, 0, 0, -9, b"cpu"), 0, ((-2, 0), b"", 0, True)),
        (24, b"x", 0, ((-22, 0), b"", 0, True)),
        (26, b"", 0, ((-22, 0), b"", 0, True)),
        (27, b"", 0, ((-38, 0), b"", 0, True)),
        (-1, b"", 0, ((-38, 0), b"", 0, True)),
    ],
)  # fmt: skip
def test_answers(server, loop, number, data, value, reply):
    assert ask(loop, frame(number, len(data), value), *([data] if data else [])) == reply


def test_cgroup_context(server, loop):
    (ret, _value), data, fds, closed = ask(loop, frame(23, 96), bytes(96))
    assert (ret, fds, closed) == (0, 2, True)
    assert struct.unpack_from("=iII", data) == (2, 0, 2)
    (_ret, _value), data, _fds, _closed = ask(loop, frame(23, 8), bytes(8))
    assert len(data) == 8  # an older client's struct


def test_cgroup_fd_on_request(server, loop, container):
    request = struct.pack("=iIii64s", 2, 0, 0, -9, b"memory")
    (ret, _value), data, fds, _closed = ask(loop, frame(25, 80), request)
    assert (ret, len(data), fds) == (0, 80, 1)
    container.unified = True
    assert ask(loop, frame(17))[2] == 1


def test_listener_command_reads_its_second_message(server, loop):
    assert ask(loop, frame(13), b"\0") == ((-22, 0), b"", 0, True)


def test_request_may_come_byte_by_byte(server, loop):
    whole = frame(7, 9) + b"lxc.arch\0"
    parts = [whole[i : i + 1] for i in range(len(whole))]
    assert ask(loop, *parts) == ((0, 1), b"x86_64\0", 0, True)


@pytest.mark.parametrize("length", [-1, 8193, 2**31 - 1])
def test_absurd_length_is_dropped(server, loop, length):
    assert ask(loop, frame(7, length)) == (None, b"", 0, True)


def test_empty_console_log_is_enodata(server, loop, container):
    container.log = b""
    data = struct.pack("=BB6xQB7x", 0, 1, 0, 0)
    assert ask(loop, frame(11, 24), data) == ((-61, 0), b"", 0, True)


def test_errors_of_the_container_are_answered(server, loop, container):
    container.broken = PermissionError(errno.EACCES, "no")
    assert ask(loop, frame(2)) == ((-13, 0), b"", 0, True)
    container.broken = RuntimeError("a defect")
    assert ask(loop, frame(7, 9), b"lxc.arch\0") == (None, b"", 0, True)
    container.broken = None
    assert ask(loop, frame(3))[0] == (0, 2)


def test_state_clients(server, loop, container):
    with connect() as one, connect() as two:
        one.sendall(frame(10, 32) + struct.pack("=8i", 0, 0, 0, 1, 0, 0, 0, 0))
        two.sendall(frame(10, 32) + struct.pack("=8i", 1, 0, 2, 0, 0, 0, 0, 0))
        settle(loop)
        assert one.recv(16) == two.recv(16) == frame(8, 0, 8)
        server.notify(STOPPING)
        assert one.recv(500) == struct.pack("=i256si", 0, b"c1", 3)
        assert one.recv(1) == b""
        server.reboot()
        server.notify(RUNNING)
        assert two.recv(500) == struct.pack("=i256si", 0, b"c1", 2)
        assert two.recv(1) == b""


def test_reboot_lets_the_others_go(server, loop):
    with connect() as one:
        one.sendall(frame(10, 32) + struct.pack("=8i", 1, 0, 0, 1, 0, 0, 0, 0))
        settle(loop)
        one.recv(16)
        server.reboot()
        assert one.recv(1) == b""


def test_thawed_is_stored_as_running_and_told_as_thawed(server, loop, container):
    with connect() as one:
        one.sendall(frame(10, 32) + struct.pack("=8i", 0, 0, 0, 0, 0, 0, 0, 1))
        settle(loop)
        one.recv(16)
        container.state = 6
        assert ask(loop, frame(12, 0, THAWED))[0] == (0, 0)
        assert container.state == RUNNING
        assert struct.unpack("=i256si", one.recv(264))[2] == THAWED


def test_closing_is_the_notice_of_stopped(server, loop):
    with connect() as one, connect() as two:
        one.sendall(frame(10, 32) + struct.pack("=8i", 1, 0, 0, 0, 0, 0, 0, 0))
        two.sendall(frame(2))
        settle(loop)
        one.recv(16)
        server.close()
        assert one.recv(1) == two.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect()


def test_terminal_lease_ends_with_its_client(server, loop, container):
    with connect() as one:
        one.sendall(frame(0, 0, 1))
        settle(loop)
        assert (container.leased, container.released) == ([1], [])
    settle(loop)
    assert container.released == [1]


def test_idle_clients_lose_the_oldest_and_hurt_nobody(server, loop):
    idle = [connect() for _ in range(commands.PENDING_LIMIT)]
    for sock in idle:
        sock.sendall(b"\3\0\0")
    settle(loop)
    assert ask(loop, frame(3))[0] == (0, 2)
    more = connect()
    settle(loop)
    idle[0].settimeout(5)
    assert idle[0].recv(1) == b""
    more.sendall(frame(3))
    settle(loop)
    assert len(more.recv(16)) == 16
    idle[-1].sendall(frame(3)[3:])
    settle(loop)
    assert idle[-1].recv(16) == frame(0, 0, 2)
    for sock in [*idle, more]:
        sock.close()


def test_a_client_that_does_not_read_gets_the_rest_later(server, loop, container):
    container.log = b"y" * 3_000_000
    with connect() as sock:
        sock.sendall(frame(11, 24) + struct.pack("=BB6xQB7x", 0, 1, 0, 0))
        settle(loop)
        assert ask(loop, frame(3))[0] == (0, 2)
        sock.setblocking(False)
        got = b""
        while True:
            try:
                part = sock.recv(65536)
            except BlockingIOError:
                settle(loop)
                continue
            if not part:
                break
            got += part
    assert len(got) == 16 + 3_000_000


def test_out_of_descriptors_the_loop_does_not_spin(server, loop, container):
    waiting = [connect() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(0))
        turns = 0
        while loop.run_once(0):
            turns += 1
            assert turns < 50
    finally:
        for fd in fill:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for sock in waiting:
        sock.close()
    settle(loop)
    assert ask(loop, frame(3))[0] == (0, 2)


def test_another_user_is_refused():
    own = (os.getuid(), os.getgid())
    control = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("=iII", 1, *own))]
    assert server_module._permitted(control)
    for uid, gid in ((own[0] + 1, own[1]), (own[0] + 1, own[1] + 1)):
        control = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("=iII", 1, uid, gid))]
        assert server_module._permitted(control) is False
    root = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("=iII", 1, 0, 9))]
    assert server_module._permitted(root)
    assert server_module._permitted([]) is None
    unknown = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("=iII", 0, 65534, 65534))]
    assert server_module._permitted(unknown) is None


@pytest.mark.parametrize(
    ("senders", "ret"), [("++", 0), ("+?", 0), ("+-", -1), ("-+", -1), ("??", -1), ("?+", 0)]
)
def test_every_known_sender_of_a_request_must_be_permitted(server, loop, monkeypatch, senders, ret):
    verdicts = iter({"+": True, "-": False, "?": None}[sender] for sender in senders)
    monkeypatch.setattr(server_module, "_permitted", lambda _control: next(verdicts))
    fields = ask(loop, frame(7, 9), b"lxc.arch\0")[0]
    assert fields is not None
    assert fields[0] == ret


def test_serving_again_moves_to_the_new_loop(server, loop, container):
    with connect() as kept:
        kept.sendall(frame(10, 32) + struct.pack("=8i", 0, 0, 2, 0, 0, 0, 0, 0))
        settle(loop)
        kept.recv(16)
        server.reboot()
        second = Loop()
        container.state = STARTING
        server.serve(second, container)
        assert ask(second, frame(3))[0] == (0, STARTING)
        server.notify(RUNNING)
        assert len(kept.recv(264)) == 264
        server.close()
        second.close()


def test_second_server_is_refused(running):
    with pytest.raises(StateError, match="container c1 is already running") as caught:
        CommandServer.listen(LXCPATH, "c1")
    assert (caught.value.now, caught.value.wanted) == ("RUNNING", "STOPPED")


pieces = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda number, length, value, data: frame(number, length, value) + data,
        st.integers(-3, 40),
        st.one_of(st.integers(0, 100), st.integers(-(2**31), 2**31 - 1)),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=120),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(pieces, st.booleans()), max_size=6))
def test_no_bytes_hurt_the_server(conversations):
    fake, loop = Fake("fuzz"), Loop()
    server = CommandServer.listen(LXCPATH, "fuzz")
    server.serve(loop, fake)
    socks = []
    try:
        for data, close in conversations:
            sock = connect("fuzz")
            sock.send(data) if data else None
            if close:
                sock.close()
            else:
                socks.append(sock)
            settle(loop)
        probe = connect("fuzz")
        socks.append(probe)
        probe.sendall(frame(4))
        settle(loop)
        assert probe.recv(16) == frame(0, 0, 4242)
        for sock in socks:
            sock.close()
        settle(loop)
        assert len(server.filenos()) == 2  # nothing is left of any of them
        assert len(fake.leased) == len(fake.released)
    finally:
        server.close()
        loop.close()
        fake.close()


# ------------------------------------------------------------------------------------- client


@pytest.fixture
def client():
    return CommandClient(LXCPATH, "c1", timeout=5)


def test_client_asks_everything(running, client, container):
    assert client.get_state() == RUNNING
    assert client.get_init_pid() == 4242
    assert client.get_clone_flags() == 0x6E020000
    assert client.get_cgroup("memory") == "/lxc.payload.c1"
    assert client.get_cgroup("memory", limit=True) == "/lxc.limit.c1"
    assert client.get_cgroup("nope") is None
    assert client.get_config_item("lxc.arch") == "x86_64"
    assert client.get_config_item("lxc.none") is None
    assert client.get_name() == "c1"
    assert client.get_lxcpath() == LXCPATH
    assert client.console_log() == b"boot\n"
    client.set_state(STARTING)
    assert container.state == STARTING
    with client.get_init_pidfd() as pidfd:
        assert os.fstat(pidfd.fileno()).st_ino == os.fstat(container.fd).st_ino
    layout, fds = client.get_cgroup_context()
    assert (layout, len(fds)) == (2, 2)
    for fd in fds:
        fd.close()
    fd = client.get_cgroup_fd("memory")
    assert fd is not None
    fd.close()
    assert client.get_cgroup_fd("nope") is None
    with pytest.raises(CommandError) as caught:
        client.get_devpts_fd()
    assert caught.value.errno == errno.EBADF
    with client.get_tty_fd(2) as terminal:
        assert terminal.tty == 2
        assert not os.get_inheritable(terminal.master.fileno())


def test_client_of_nobody():
    client = CommandClient(LXCPATH, "nobody")
    assert client.get_state() == STOPPED
    with pytest.raises(StateError, match="container nobody is not running"):
        client.get_init_pid()
    assert wait_states(LXCPATH, "nobody", [STOPPED]) == STOPPED
    assert wait_states(LXCPATH, "nobody", [RUNNING], 0) is None


def test_waiting_for_a_state(running, client, container):
    assert wait_states(LXCPATH, "c1", [RUNNING, STOPPED], 5) == RUNNING
    with client.add_state_client([0, 0, 0, 1, 0, 0, 0, 0]) as waiting:
        assert waiting.state is None
        assert waiting.wait(0) is None
        client.set_state(STOPPING)
        assert waiting.wait(5) == STOPPING
    assert wait_states(LXCPATH, "c1", [RUNNING], 0.01) is None


def test_active_containers(server):
    assert active_containers(LXCPATH) == ("c1",)
    assert active_containers(LXCPATH + "/c1") == ()
    assert active_containers("/") == ()


def test_active_containers_behind_hashed_addresses(loop):
    name = "l" * 100
    fake = Fake(name)
    server = CommandServer.listen(LXCPATH, name)
    server.serve(loop, fake)
    done = []
    thread = threading.Thread(target=lambda: done.append(active_containers(LXCPATH)))
    thread.start()
    while not done:
        loop.run_once(0.01)
    thread.join()
    server.close()
    fake.close()
    assert done == [(name,)]


def impostor(answer):
    """A server that answers each of its connections with these bytes; None: says nothing and keeps it open."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address(LXCPATH, "odd"))
    listener.listen()
    kept = []

    def run():
        sock, _peer = listener.accept()
        kept.append(sock)
        if answer is not None:
            sock.recv(16)
            with contextlib.suppress(OSError):
                sock.sendall(answer)
            sock.close()

    thread = threading.Thread(target=run)
    thread.start()
    return listener, thread, kept


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "no answer in time"),
        (b"", "was not answered"),
        (b"\0\0\0", "breaks off"),
        (frame(0, 10, 1) + b"abc", "breaks off"),
        (frame(0, 2**31 - 1, 1), "too long"),
        (frame(-1), "operation not permitted"),
        (frame(-38), "not implemented"),
    ],
)
def test_odd_answers_are_command_errors(answer, why):
    listener, thread, kept = impostor(answer)
    try:
        with pytest.raises(CommandError, match=why):
            CommandClient(LXCPATH, "odd", timeout=0.05 if answer is None else 5).get_state()
    finally:
        thread.join()
        for sock in [listener, *kept]:
            sock.close()


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.binary(min_size=16, max_size=40).map(lambda b: frame(0, 3, 1) + b),
    )
)
def test_no_answer_hurts_the_client(answer):
    listener, thread, kept = impostor(answer)
    try:
        with contextlib.suppress(CommandError):
            CommandClient(LXCPATH, "odd", timeout=5).get_config_item("lxc.arch")
    finally:
        thread.join()
        for sock in [listener, *kept]:
            sock.close()


def test_a_foreign_server_is_not_believed(running, client, monkeypatch):
    monkeypatch.setattr(client_module, "_peer_uid", lambda _sock: os.geteuid() + 1)
    with pytest.raises(CommandError, match="held by a process of user"):
        client.get_init_pid()
