"""The event loop of a monitor: epoll and callbacks, over any number of containers.

Not asyncio (36 ms of import, 7 MB a process). One callback a descriptor; a callback may watch and forget others.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
PRIORITY = select.EPOLLPRI
HUNG_UP = select.EPOLLHUP | select.EPOLLERR


class Loop:
    """Watches descriptors and calls back with the epoll events that happened."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, callback: Callable[[int], None], *, events: int = READ) -> None:
        """Call `callback(events)` whenever `fd` is ready; replaces an earlier callback for `fd`.

        Raises PermissionError for what cannot be polled (regular files).
        """
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; harmless when it is not watched. Call it before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Is this descriptor watched?"""
        return fd in self._callbacks

    def watched(self) -> frozenset[int]:
        """Every descriptor that is watched."""
        return frozenset(self._callbacks)

    def run_once(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (None: for ever) and make the callbacks; False when nothing happened."""
        events = self._epoll.poll(-1 if timeout is None else max(timeout, 0))
        for fd, event in events:
            callback = self._callbacks.get(fd)
            if callback is not None:  # an earlier callback of this round may have forgotten it
                callback(event)
        return bool(events)

    def wait(self, *fds: int) -> tuple[int, ...]:
        """Serve the loop until one of `fds` is readable or hung up; return those. They must not be watched already."""
        ready: list[int] = []
        for fd in fds:
            self.watch(fd, lambda _events, fd=fd: ready.append(fd))  # type: ignore[misc]  # the default binds the loop's variable
        try:
            while not ready:
                self.run_once()
        finally:
            for fd in fds:
                self.forget(fd)
        return tuple(ready)

    def fileno(self) -> int:
        """The epoll descriptor."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close the epoll descriptor; what was watched stays open."""
        self._callbacks.clear()
        self._epoll.close()
