"""Namespaces of each kind, for this user and for others, and maps of subordinate ids.

Sources: namespaces(7), user_namespaces(7), newuidmap(1).
"""

from __future__ import annotations

import os
from errno import ECANCELED, EPERM

from atoll.lifecycle.trials import (
    DISABLED,
    ENABLED,
    MISSING,
    Trial,
    attempt,
    become_root_inside,
    in_child,
    map_root,
    program,
    run,
    text_of,
)
from atoll.linux import files, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Self

    from atoll.host import Host

STRANGER: Final = 65533  # a user whom distributions reserve: no process of his could look into ours
ORDINARY_MAP: Final = (100000, 65536)
NAMESPACES: Final = (
    ("Mount namespace", process.CLONE_NEWNS),
    ("Utsname namespace", process.CLONE_NEWUTS),
    ("Ipc namespace", process.CLONE_NEWIPC),
    ("Pid namespace", process.CLONE_NEWPID),
    ("Network namespace", process.CLONE_NEWNET),
    ("Cgroup namespace", process.CLONE_NEWCGROUP),
    ("Time namespace", process.CLONE_NEWTIME),
)
USER: Final = "User namespace"
ORDINARY: Final = "User namespace, for ordinary users"
SUBORDINATE: Final = "Subordinate ids"


def namespaces(host: Host) -> tuple[Trial, ...]:
    """Each kind of namespace, for this user; and user namespaces for everybody else."""
    items = [item for item, _flag in NAMESPACES]

    def work() -> list[Trial]:
        if not host.privileged:
            become_root_inside(os.geteuid(), os.getegid())
        return [attempt(item, lambda f=flag: process.unshare(f)) for item, flag in NAMESPACES]  # type: ignore[misc]  # the default binds the loop's variable

    user = in_child(lambda: [_user_namespace(USER)], [USER])
    found = [*in_child(work, items)] if host.privileged or user[0].state == ENABLED else [
        Trial(item=item, state=DISABLED, reason="no user namespace") for item in items
    ]  # fmt: skip
    found.insert(4, user[0])
    worst = [trial.state for trial in found[:6] if trial.state != ENABLED]
    found.insert(0, Trial(item="Namespaces", state=(*worst, ENABLED)[0]))
    if host.privileged:
        found += in_child(_as_stranger, [ORDINARY])
    return (*found, *in_child(lambda: [_subordinate(host)], [SUBORDINATE]))


def _user_namespace(item: str) -> Trial:
    """A user namespace in which the caller is root: one without an id map is of no use."""
    uid, gid = os.geteuid(), os.getegid()
    trial = attempt(item, lambda: process.unshare(process.CLONE_NEWUSER))
    if trial.state != ENABLED:
        return trial.replace(reason=_forbids() or trial.reason)
    trial = attempt(item, lambda: map_root(uid, gid))
    return trial if trial.state == ENABLED else trial.replace(reason=f"id map {trial.reason}")


def _forbids() -> str:
    """The setting that forbids user namespaces."""
    for setting, value in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        if text_of(f"/proc/sys/{setting}") == value:
            return f"{setting.replace('/', '.')} = {value}"
    return ""


def _as_stranger() -> list[Trial]:
    process.set_ids(STRANGER, STRANGER, ())
    process.set_dumpable(True)  # so that /proc/self is ours, as it is after an exec
    return [_user_namespace(ORDINARY)]


def _subordinate(host: Host) -> Trial:
    """A range of subordinate ids mapped into a user namespace: by root itself, or by newuidmap and newgidmap."""
    direct = host.can("setuid") and host.can("setgid")
    ranges = [(found[0].first, found[0].count) for found in (host.subuids, host.subgids) if found]
    if direct and len(ranges) < 2:
        ranges = [ORDINARY_MAP] * 2
    for helper, path in (("newuidmap", host.newuidmap), ("newgidmap", host.newgidmap)):
        if path is None and not direct:
            installed = program(helper, {})
            why = f"{helper} is {'not setuid root' if installed else 'not installed'}"
            return Trial(item=SUBORDINATE, state=DISABLED if installed else MISSING, reason=why)
    if len(ranges) < 2:
        file = "/etc/subgid" if host.subuids else "/etc/subuid"
        return Trial(item=SUBORDINATE, state=MISSING, reason=f"none for {host.user} in {file}")
    shown = ", ".join(f"{first}:{count}" for first, count in ranges)
    return attempt(SUBORDINATE, lambda: _map(host, ranges, direct=direct), shown)


def _map(host: Host, ranges: list[tuple[int, int]], *, direct: bool) -> None:
    """Write both maps of a waiting child. Raises OSError."""
    helpers = ("", "") if direct else (host.newuidmap or "", host.newgidmap or "")
    with Waiting() as child:
        for file, helper, (first, count) in zip(("uid", "gid"), helpers, ranges, strict=True):
            if not helper:
                files.write_text(f"/proc/{child.pid}/{file}_map", f"0 {first} {count}\n")
            elif run(helper, str(child.pid), "0", str(first), str(count)):
                raise OSError(ECANCELED, "refused")


class Waiting:
    """A child that waits in a new user namespace until it is let go: `with Waiting() as child`."""

    def __enter__(self) -> Self:
        """Fork it. Raises PermissionError when it cannot have the namespace."""
        ready, tell = os.pipe2(os.O_CLOEXEC)
        wait, self.release = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            self._wait_and_exit(tell, wait)
        os.close(tell)
        os.close(wait)
        told = os.read(ready, 1)
        os.close(ready)
        if not told:
            self.__exit__()
            raise PermissionError(EPERM, "no user namespace")
        return self

    def _wait_and_exit(self, tell: int, wait: int) -> None:
        os.close(self.release)
        try:
            process.unshare(process.CLONE_NEWUSER)
            os.write(tell, b"+")
            os.read(wait, 1)
        finally:
            os._exit(0)

    def __exit__(self, *_error: object) -> None:
        os.close(self.release)
        os.waitpid(self.pid, 0)
