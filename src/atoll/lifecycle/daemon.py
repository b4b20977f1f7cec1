"""Leaving the terminal: the double fork of a daemonized start, and the report that the caller waits for.

The caller gets the daemon's own error, whole, not "see the log". Source: reference of LXC section 1.6 (caller).
"""

from __future__ import annotations

import os

from atoll import errors
from atoll import log as log_module
from atoll.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def detach(
    work: Callable[[Callable[[], None]], None], *, title: str, pidfile: str | None = None
) -> None:
    """Run `work(ready)` in a daemon and return when it has called `ready()`.

    The daemon is the child of a child that has exited; it is in a session of its own, in "/", with /dev/null on 0 to 2.
    `pidfile` gets its pid (decimal, 0600) before the work. Raises what the work raised before it was ready; an error of the
    daemon that is not ours comes as HostError.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = process.clone(lambda: _first_child(work, writer, reader, title, pidfile))
        finally:
            os.close(writer)
        with child.pidfd:
            process.wait_pidfd(child.pidfd.fileno())
        report = _read_all(reader)
    finally:
        os.close(reader)
    if report == "ready":
        return
    if not report:
        raise errors.HostError(
            "the monitor died before the container was running, without saying why"
        )
    raise errors.load(report)


def _read_all(reader: int) -> str:
    chunks = []
    while data := os.read(reader, 65536):
        chunks.append(data)
    return b"".join(chunks).decode("utf-8", "surrogateescape")


def _first_child(
    work: Callable[[Callable[[], None]], None],
    writer: int,
    reader: int,
    title: str,
    pidfile: str | None,
) -> None:
    os.close(reader)
    process.clone(lambda: _daemon(work, writer, title, pidfile))
    os._exit(0)


def _daemon(
    work: Callable[[Callable[[], None]], None], writer: int, title: str, pidfile: str | None
) -> None:
    def say(text: str) -> None:
        os.write(writer, text.encode("utf-8", "surrogateescape"))
        os.close(writer)

    reported = False

    def ready() -> None:
        nonlocal reported
        reported = True
        say("ready")

    status = 0
    try:
        os.setsid()
        process.set_process_title(title)
        if pidfile is not None:
            write_pidfile(pidfile)
        os.chdir("/")
        _null_stdio()
        work(ready)
    except BaseException as error:  # noqa: BLE001 - the caller must hear of whatever it was
        status = 1
        if not reported:
            say(errors.dump(error))
    if pidfile is not None:
        os.unlink(pidfile)
    os._exit(status)


def write_pidfile(path: str) -> None:
    """Write this process's pid: decimal, no newline, 0600, as LXC does."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, str(os.getpid()).encode())
    finally:
        os.close(fd)


def _null_stdio() -> None:
    log_module.silence_stderr()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)
