"""The steps about cgroups: create, enter, hand controllers down, limit, delegate, and their inverses.

Which of them a start needs is decided in the package itself; what differs between cgroup2 and v1 is in the drivers.
Sources of truth: cgroups(7), the kernel's admin-guide on cgroup-v1 and cgroup-v2, reference of LXC section 5.

Unlike LXC nothing is left behind: what is in the monitor's cgroup goes back to where the monitor came from (LXC: to
`lxc.pivot`, which stays), and leading directories that we made for lxc.cgroup.dir go with their last user. They are known by
the sticky bit, with which mkdir(2) makes them, so an administrator's own directory is never removed.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from atoll.errors import HostError
from atoll.linux import files, process
from atoll.log import INFO, WARN
from atoll.plan import CHILD, HostStep, InitStep
from atoll.resources.cgroup.driver import (
    CLONED_INTO,
    ENABLED,
    MONITOR,
    PAYLOAD,
    PAYLOAD_FD,
    Payload,
    driver,
    processes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar, Final

    from atoll.host import Hierarchy
    from atoll.plan import Handler, Slot
    from atoll.resources.cgroup.driver import Driver

MODE: Final = 0o755
LEADING_MODE: Final = (
    0o1755  # the sticky bit: made by us, for whoever removes the last cgroup in it
)
PATIENCE: Final = 5.0
"""Seconds that killed processes get to leave their cgroups: one in uninterruptible sleep may take long."""
ATTEMPTS: Final = 50


class RunWithoutCgroups(HostStep):
    """No hierarchy that we may write to: the container stays in the caller's cgroups."""

    def apply(self, h: Handler) -> None:
        """Say so."""
        h.report(INFO, "no writable cgroup hierarchy: the container runs in the caller's cgroups")

    def explain(self) -> str:
        """In words."""
        return "run without cgroups: no hierarchy is writable"


class SkipLimits(HostStep):
    """Limits that are not applied here, and why; `more` lines besides the one named."""

    limit: str
    more: int
    why: str
    loud: bool

    def apply(self, h: Handler) -> None:
        """Report them."""
        where = f" ({self.origin})" if self.origin else ""
        h.report(WARN if self.loud else INFO, f"ignoring {self._what()}{where}: {self.why}")

    def _what(self) -> str:
        return f"{self.limit} and {self.more} more" if self.more else self.limit

    def explain(self) -> str:
        """In words."""
        return f"ignore {self._what()}: {self.why}"


class CreateMonitorCgroup(HostStep):
    """The monitor's own cgroup in every hierarchy, made new."""

    hierarchies: tuple[Hierarchy, ...]
    path: str

    def apply(self, h: Handler) -> None:
        """Make them all or none."""
        del h
        _create(self.hierarchies, self.path)

    def inverse(self) -> HostStep:
        """Everybody back to where the monitor came from, and the cgroups away."""
        return RemoveMonitorCgroup(
            bases=_bases(self.hierarchies),
            path=self.path,
            origins=tuple([hierarchy.mount + hierarchy.own for hierarchy in self.hierarchies]),
        )

    def explain(self) -> str:
        """In words."""
        return f"create the monitor's cgroup {_where(self.hierarchies, self.path)}"


class EnterMonitorCgroup(HostStep):
    """Move this process into the monitor's cgroup. CreateMonitorCgroup's inverse takes it out again."""

    hierarchies: tuple[Hierarchy, ...]
    path: str
    fills: ClassVar[tuple[Slot[Any], ...]] = (MONITOR,)

    def apply(self, h: Handler) -> None:
        """Move in every hierarchy; noted first, because half a move has to be taken back too."""
        h[MONITOR] = os.getpid()
        pid = _self()
        for hierarchy in self.hierarchies:
            driver(hierarchy.version).move(f"{hierarchy.mount}{hierarchy.base}/{self.path}", pid)

    def explain(self) -> str:
        """In words."""
        return f"move the monitor into cgroup {_where(self.hierarchies, self.path)}"


class RemoveMonitorCgroup(HostStep):
    """Move what is in the monitor's cgroup to `origins`, one a base, and remove it. `bases`: (version, directory).

    Not only the monitor: what a hook left running, or the process that daemonized, would keep the cgroup busy. They are
    put where they would be, had the monitor never moved.
    """

    bases: tuple[tuple[int, str], ...]
    path: str
    origins: tuple[str, ...]

    def apply(self, h: Handler) -> None:
        """Gone already is fine."""
        pid = _self() if h.take(MONITOR) == os.getpid() else None
        problem: OSError | None = None
        for (version, base), origin in zip(self.bases, self.origins, strict=True):
            try:
                self._leave(driver(version), base, origin, pid)
            except OSError as error:
                problem = problem or error  # the other hierarchies must be left all the same
        if problem is not None:
            raise problem

    def _leave(self, generation: Driver, base: str, origin: str, pid: int | None) -> None:
        directory = f"{base}/{self.path}"
        if pid is not None:
            generation.move(origin, pid)
        for _attempt in range(ATTEMPTS):
            if _rmdir(directory):
                _remove_leading(base, self.path)
                return
            for other in processes(directory):
                _evict(generation, origin, other)
            _remove_tree(directory)
            generation.pause(directory, 0.05)
        files.rmdir(directory)  # raises what is in the way

    def recognise(self, began: float) -> bool:
        """Made since then, and nobody in it: the monitor had not entered yet."""
        return _is_new(self.bases, self.path, began)

    def explain(self) -> str:
        """In words."""
        return f"leave and remove the monitor's cgroup {self.path}"


class EnableControllers(HostStep):
    """Hand the controllers of the cgroup2 base down to our cgroups, where they are not yet."""

    directory: str
    controllers: tuple[str, ...]

    def apply(self, h: Handler) -> None:
        """Remember what is new, for the inverse. What the kernel refuses is missed only by a limit that needs it."""
        from atoll.resources.cgroup import unified

        enabled, refused = unified.enable(self.directory, self.controllers)
        if enabled:
            if ENABLED not in h:
                h[ENABLED] = {}
            h[ENABLED][self.directory] = (enabled, unified.children(self.directory))
        if refused:
            names = " ".join(refused)
            h.report(INFO, f"the kernel does not hand down {names} from {self.directory}")

    def inverse(self) -> HostStep:
        """Taken back where nobody can rely on it."""
        return DisableControllers(directory=self.directory)

    def explain(self) -> str:
        """In words."""
        return f"hand the controllers {' '.join(self.controllers)} down from {self.directory}"


class DisableControllers(HostStep):
    """Take back what EnableControllers handed down, unless another cgroup appeared there: it may rely on it.

    So it is known only to the process that did it; recovery leaves the controllers on, which harms nobody.
    """

    directory: str

    def apply(self, h: Handler) -> None:
        """Nothing where nothing was enabled."""
        from atoll.resources.cgroup import unified

        enabled, children = (h.get(ENABLED) or {}).pop(self.directory, ((), ()))
        if enabled and set(unified.children(self.directory)) <= set(children):
            unified.disable(self.directory, enabled)

    def explain(self) -> str:
        """In words."""
        return f"take back the controllers handed down from {self.directory}"


class CreatePayloadCgroup(HostStep):
    """The container's cgroup in every hierarchy, made new."""

    hierarchies: tuple[Hierarchy, ...]
    path: str
    inner: str = ""
    fills: ClassVar[tuple[Slot[Any], ...]] = (PAYLOAD,)

    def apply(self, h: Handler) -> None:
        """Make them all or none, and open that in cgroup2 for the clone."""
        payload = Payload(hierarchies=self.hierarchies, path=self.path, inner=self.inner)
        _create(self.hierarchies, self.path, self.inner)
        last = self.hierarchies[-1]  # cgroup2 comes last
        if last.version == 2:
            try:
                place = payload.directory(last)
                h[PAYLOAD_FD] = files.open_fd(place, os.O_PATH | os.O_DIRECTORY)
            except BaseException:
                self.inverse().apply(h)
                raise
        h[PAYLOAD] = payload

    def inverse(self) -> HostStep:
        """End what is inside and remove them."""
        return RemovePayloadCgroup(bases=_bases(self.hierarchies), path=self.path)

    def explain(self) -> str:
        """In words."""
        within = f", with {self.inner} in it" if self.inner else ""
        return f"create the container's cgroup {_where(self.hierarchies, self.path)}{within}"


class RemovePayloadCgroup(HostStep):
    """End every process in the payload's cgroups, and remove them with everything below. `bases`: (version, directory)."""

    bases: tuple[tuple[int, str], ...]
    path: str

    def apply(self, h: Handler) -> None:
        """Gone already is fine. Usually all are empty, and this is one rmdir(2) a hierarchy."""
        h.take(PAYLOAD)
        fd = h.take(PAYLOAD_FD)
        if fd is not None:
            fd.close()
        busy = [entry for entry in self.bases if not _rmdir(f"{entry[1]}/{self.path}")]
        if busy:
            self._empty(busy)
        if "/" in self.path:
            for _version, base in self.bases:
                _remove_leading(base, self.path)

    def _empty(self, busy: list[tuple[int, str]]) -> None:
        deadline = time.monotonic() + PATIENCE
        while busy := [entry for entry in busy if not _remove_tree(f"{entry[1]}/{self.path}")]:
            for version in sorted({version for version, _base in busy}, reverse=True):
                driver(version).kill([f"{b}/{self.path}" for v, b in busy if v == version])
            version, base = busy[-1]
            directory = f"{base}/{self.path}"
            left = deadline - time.monotonic()
            if left <= 0:
                raise _stuck(directory)
            driver(version).pause(directory, left)

    def recognise(self, began: float) -> bool:
        """Made since then, and nobody in it: init is cloned later."""
        return _is_new(self.bases, self.path, began)

    def explain(self) -> str:
        """In words."""
        return f"end what is in cgroup {self.path} and remove it"


class JoinPayloadCgroup(InitStep):
    """Init enters the payload's cgroups in which it was not born, as long as it still sees the host's mounts.

    It has one thread, so for v1 the kernel need not stop all forks of the machine.
    """

    needs: ClassVar[tuple[Slot[Any], ...]] = (PAYLOAD,)

    def apply(self, h: Handler) -> None:
        """Write to `tasks` of each, to `cgroup.procs` in cgroup2."""
        payload = h[PAYLOAD]
        born = h.get(CLONED_INTO)
        for hierarchy in payload.hierarchies:
            if hierarchy.version == 1 or not born:
                driver(hierarchy.version).move(payload.directory(hierarchy), 0)

    def explain(self) -> str:
        """In words."""
        return "enter the container's cgroups"


class EnterPayloadCgroup(HostStep):
    """Put init, which does not see the host's hierarchies, into the payload's cgroups; it may have been born in cgroup2."""

    needs: ClassVar[tuple[Slot[Any], ...]] = (PAYLOAD, CHILD)

    def apply(self, h: Handler) -> None:
        """Write its pid."""
        payload = h[PAYLOAD]
        for hierarchy in payload.hierarchies:
            if hierarchy.version == 1 or not h.get(CLONED_INTO):
                driver(hierarchy.version).move(payload.directory(hierarchy), h[CHILD].pid)

    def explain(self) -> str:
        """In words."""
        return "put init into the container's cgroups"


class SetLimit(HostStep):
    """Write one lxc.cgroup2 value as it is."""

    file: str
    value: str
    directory: str

    def apply(self, h: Handler) -> None:
        """Write it; an unknown file is named as such."""
        del h
        line = f"lxc.cgroup2.{self.file} = {self.value}"
        _set(line, f"{self.directory}/{self.file}", self.value)

    def explain(self) -> str:
        """In words."""
        return f"set {self.file} to {self.value} in the container's cgroup2"


class SetLegacyLimit(HostStep):
    """Write one lxc.cgroup (v1) value as it is; a device's path becomes its type and number."""

    file: str
    value: str
    directories: tuple[str, ...]

    @property
    def devices(self) -> bool:
        """A rule of the devices controller: those are set last."""
        return self.file.startswith("devices.")

    def apply(self, h: Handler) -> None:
        """Write it. lxc: a device rule that we may not set (a nested container) is only warned about."""
        line = f"lxc.cgroup.{self.file} = {self.value}"
        value = self.value
        if self.devices and value.startswith("/"):
            value = device_rule(value)
        for directory in self.directories:
            try:
                _set(line, f"{directory}/{self.file}", value)
            except HostError as error:
                if not self.devices or error.errno not in (errno.EACCES, errno.EPERM):
                    raise
                h.report(WARN, error.message)

    def explain(self) -> str:
        """In words."""
        return f"set {self.file} to {self.value} in the container's cgroup"


class DelegateCgroup(HostStep):
    """Give the payload's cgroups, with the files that a delegate writes, to the container's root (ids of the host)."""

    uid: int
    gid: int
    needs: ClassVar[tuple[Slot[Any], ...]] = (PAYLOAD,)

    def apply(self, h: Handler) -> None:
        """What we may not give away stays ours: the container then cannot make cgroups of its own there."""
        payload = h[PAYLOAD]
        refused = 0
        for hierarchy in payload.hierarchies:
            names = ("", *driver(hierarchy.version).delegated())
            outer = payload.directory(hierarchy, limits=True)
            for directory in dict.fromkeys((outer, payload.directory(hierarchy))):
                refused += sum([not self._give(directory, name) for name in names])
        if refused:
            h.report(INFO, f"cannot give {refused} cgroup files to the container's root")

    def _give(self, directory: str, name: str) -> bool:
        path = f"{directory}/{name}" if name else directory
        try:
            files.chown(path, self.uid, self.gid)
            files.chmod(path, 0o664 if name else 0o775)
        except OSError as error:
            if error.errno == errno.ENOENT:  # a file of a controller that is not there
                return True
            if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS, errno.EINVAL):
                return False
            raise
        return True

    def explain(self) -> str:
        """In words."""
        return f"give the container's cgroups to its root (uid {self.uid}, gid {self.gid})"


# ---------------------------------------------------------------------------------------- private
def device_rule(value: str) -> str:
    """`/dev/null rwm` as the devices controller wants it: `c 1:3 rwm`. Raises HostError when it is no device."""
    path, _, access = value.partition(" ")
    try:
        status = os.stat(path)
    except OSError as error:
        raise HostError(
            f"cannot allow the device {path}: {(error.strerror or '').lower()}", errno=error.errno
        ) from error
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c" if stat.S_ISCHR(status.st_mode) else ""
    if not kind:
        raise HostError(f"cannot allow the device {path}: it is not a device")
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return f"{kind} {number} {access.strip()}".rstrip()


def _set(line: str, path: str, value: str) -> None:
    try:
        files.write_text(path, value)
    except OSError as error:
        raise HostError(f"cannot set {line}: {_why(error, path)}", errno=error.errno) from error


def _why(error: OSError, path: str) -> str:
    if error.errno == errno.ENOENT:
        return f"the cgroup has no file {path.rpartition('/')[2]}"
    if error.errno in (errno.EINVAL, errno.ERANGE):
        return "the kernel does not take this value"
    return (error.strerror or "error").lower()


def _where(hierarchies: Sequence[Hierarchy], path: str) -> str:
    many = f" in {len(hierarchies)} hierarchies" if len(hierarchies) > 1 else ""
    return f"{path}{many}"


def _self() -> int:
    """How to name this process when it moves itself: 0 is quick and moves one thread."""
    return 0 if process.thread_count() == 1 else os.getpid()


def _bases(hierarchies: Sequence[Hierarchy]) -> tuple[tuple[int, str], ...]:
    return tuple([(each.version, each.mount + each.base) for each in hierarchies])


def _create(hierarchies: Sequence[Hierarchy], path: str, inner: str = "") -> None:
    """Make the cgroup `path` in all hierarchies, each new; on failure none is left."""
    made: list[str] = []
    try:
        for hierarchy in hierarchies:
            _create_one(hierarchy, path, inner, made)
    except BaseException:
        for directory in reversed(made):
            _rmdir(directory)
        for hierarchy in hierarchies:
            _remove_leading(hierarchy.mount + hierarchy.base, path)
        raise


def _create_one(hierarchy: Hierarchy, path: str, inner: str, made: list[str]) -> None:
    parent = hierarchy.mount + hierarchy.base
    if "/" in path:
        parent = _create_leading(hierarchy, path, driver(hierarchy.version))
    directory = f"{parent}/{path.rpartition('/')[2]}"
    _make_new(directory)
    made.append(directory)
    _adopt(hierarchy, parent, directory)
    if inner:
        driver(hierarchy.version).enable(directory, hierarchy.controllers)
        files.mkdir(f"{directory}/{inner}", MODE)
        made.append(f"{directory}/{inner}")
        _adopt(hierarchy, directory, f"{directory}/{inner}")


def _adopt(hierarchy: Hierarchy, parent: str, directory: str) -> None:
    """Make a new cgroup usable; a cgroup2 is, and then its driver need not be loaded."""
    if hierarchy.version == 1:
        driver(1).adopt(parent, directory, hierarchy.controllers)


def _make_new(directory: str) -> None:
    try:
        files.mkdir(directory, MODE)
    except FileExistsError as error:
        raise HostError(
            f"cannot create cgroup {directory}: it exists",
            errno=error.errno,
            fix="stop the container that uses it, or remove it if none does",
        ) from error


def _create_leading(hierarchy: Hierarchy, path: str, generation: Driver) -> str:
    """The directories between base and ours, where they are missing; others may share, make and remove them with us."""
    parent = hierarchy.mount + hierarchy.base
    for name in path.split("/")[:-1]:
        directory = f"{parent}/{name}"
        try:
            files.mkdir(directory, LEADING_MODE)
        except FileExistsError:
            pass
        else:
            generation.adopt(parent, directory, hierarchy.controllers)
        generation.enable(directory, hierarchy.controllers)
        parent = directory
    return parent


def _remove_leading(base: str, path: str) -> None:
    """Remove the directories above ours that one of us made, as far as nobody uses them."""
    while "/" in path:
        path = path.rpartition("/")[0]
        try:
            marked = os.stat(f"{base}/{path}").st_mode & stat.S_ISVTX
        except FileNotFoundError:
            continue
        if not marked or not _rmdir(f"{base}/{path}"):
            return


def _rmdir(directory: str) -> bool:
    """Remove a cgroup; False when it is in use. Gone already is fine."""
    try:
        files.rmdir(directory)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
    return True


def _remove_tree(directory: str) -> bool:
    below = [top for top, _names, _files in os.walk(directory, topdown=False)]
    return all([_rmdir(top) for top in below])  # noqa: C419 - each is tried, whatever became of the others


def _stuck(directory: str) -> HostError:
    pids = " ".join(map(str, processes(directory)))
    why = f"processes {pids} do not end" if pids else "the kernel says that it is busy"
    return HostError(
        f"cannot remove cgroup {directory}: {why}",
        errno=errno.EBUSY,
        fix=f"when they have ended: find {directory} -depth -type d -exec rmdir {{}} +",
    )


def _evict(generation: Driver, origin: str, pid: int) -> None:
    if pid == 0:  # not in our pid namespace: it has no name here, and 0 would be ourselves
        return
    try:
        generation.move(origin, pid)
    except ProcessLookupError:  # it ended in the meantime
        return


def _is_new(bases: Sequence[tuple[int, str]], path: str, began: float) -> bool:
    """Every cgroup that is there was made since `began` (a second of tolerance for coarse clocks), and is empty."""
    for _version, base in bases:
        directory = f"{base}/{path}"
        try:
            made = os.stat(directory).st_ctime
        except FileNotFoundError:
            continue
        if made < began - 1 or list(processes(directory)):
            return False
    return True
