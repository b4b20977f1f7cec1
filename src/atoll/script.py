"""Running a host program for the container: hooks, network scripts, newuidmap. Output captured, exit status returned.

Not for init's own exec and not for attach. Works on both sides of the clone: it imports nothing late.
Source of truth for hooks: reference of LXC, section 8 (`/bin/sh -c "exec VALUE …"`, ten reads of 4095 bytes kept).
"""

from __future__ import annotations

import os

from atoll.linux import process
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from atoll.linux.process import ExitStatus
    from atoll.plan import Handler

OUTPUT_LIMIT = 10 * 4095


class Output(Record):
    """What a program left: its exit status and the first 40,950 bytes of stdout and stderr together."""

    status: ExitStatus
    text: str

    @property
    def success(self) -> bool:
        """Exited with 0."""
        return self.status.exited and self.status.value == 0

    def failure(self) -> str:
        """`script exited with status 3: LAST LINE` in words."""
        what = "exited with status" if self.status.exited else "was ended by signal"
        lines = [line for line in self.text.splitlines() if line.strip()]
        tail = f": {lines[-1].strip()}" if lines else ""
        return f"{what} {self.status.value}{tail}"


def shell(
    h: Handler, command: str, *, environment: Mapping[str, str], arguments: Sequence[str] = ()
) -> Output:
    """Run a configured command line through /bin/sh, as LXC does; `arguments` are appended after it."""
    line = f"exec {command} {' '.join(arguments)}".rstrip()
    return run(h, ("/bin/sh", "-c", line), environment=environment)


def run(h: Handler, argv: Sequence[str], *, environment: Mapping[str, str]) -> Output:
    """Run a program by absolute path and wait for it; the monitor goes on serving commands meanwhile.

    Raises OSError when it cannot be forked; a program that cannot be executed counts as exit status 127.
    A background process that keeps the output open does not hold us up: we end when the program does.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            child = process.clone(lambda: _become(argv, environment, writer))
        finally:
            os.close(writer)
        chunks: list[bytes] = []
        with child.pidfd:
            try:
                status = _attend(h, child.pidfd.fileno(), reader, chunks)
            except (
                BaseException
            ):  # a signal ended what the program is part of: it must not go on alone
                _end(child.pidfd.fileno())
                raise
    finally:
        os.close(reader)
    if status is None:  # block=True always returns a status
        raise ChildProcessError("wait gave no status")
    data = b"".join(chunks)[:OUTPUT_LIMIT]
    return Output(status=status, text=data.decode("utf-8", "surrogateescape"))


def _attend(h: Handler, pidfd: int, reader: int, chunks: list[bytes]) -> ExitStatus | None:
    """Collect the output until the program ends."""
    watched: tuple[int, ...] = (reader, pidfd)
    while pidfd not in (ready := h.wait(*watched)):
        if reader in ready and not _drain(reader, chunks):
            watched = (pidfd,)  # the program closed its output and goes on
    _drain(reader, chunks)
    return process.wait_pidfd(pidfd)


def _end(pidfd: int) -> None:
    try:
        process.pidfd_send_signal(pidfd, process.SIGKILL)
        process.wait_pidfd(pidfd)
    except (ProcessLookupError, ChildProcessError):
        return  # it has ended and was reaped


def _drain(reader: int, chunks: list[bytes]) -> bool:
    """Read what is there; False at end of file."""
    while True:
        try:
            data = os.read(reader, 4095)
        except BlockingIOError:
            return True
        if not data:
            return False
        if sum(map(len, chunks)) < OUTPUT_LIMIT:
            chunks.append(data)


def _become(argv: Sequence[str], environment: Mapping[str, str], writer: int) -> None:
    os.set_blocking(writer, True)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    process.reset_signals()
    process.set_signal_mask(0)
    try:
        os.execve(argv[0], list(argv), dict(environment))
    except OSError as error:
        os.write(2, f"cannot execute {argv[0]}: {error.strerror}\n".encode())
    os._exit(127)
