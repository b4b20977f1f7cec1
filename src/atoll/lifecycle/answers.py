"""What the command server answers to each command: loaded when the first client asks.

One function a command: (ask) -> Reply, or None to close without a word. Source of truth: reference of LXC, section 10.3
(observed on 5.0.2).
"""

from __future__ import annotations

import errno
import os

from atoll.lifecycle.commands import (
    CONSOLE,
    CONTEXT,
    DEVICE,
    FDS_LIMIT,
    GET_LIMIT_CGROUP,
    GET_LIMIT_CGROUP2_FD,
    GET_LIMIT_CGROUP_FD,
    HIERARCHY,
    STATES,
    WANTED,
    c_string,
)
from atoll.lifecycle.server import Ask, Reply
from atoll.log import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

log = get_logger(__name__)


def _get_tty(ask: Ask) -> Reply:
    leased = ask.container.console(ask.value)
    if leased is None:
        return Reply(ret=-errno.EBADF)
    ask.connection.tty, master = leased
    return Reply(value=ask.connection.tty, fds=(master,), keep=True)


def _close(_ask: Ask) -> None:
    return None


def _stop(ask: Ask) -> Reply:
    ask.container.stop()
    return Reply(keep=True, silent=True)  # success is the end of file when the monitor exits


def _get_state(ask: Ask) -> Reply:
    return Reply(value=ask.container.state)


def _get_init_pid(ask: Ask) -> Reply:
    return Reply(value=ask.container.init_pid)


def _get_clone_flags(ask: Ask) -> Reply:
    return Reply(value=ask.container.clone_flags)


def _get_cgroup(ask: Ask) -> Reply | None:
    if not ask.data:
        return None
    controller = ask.text()
    if controller is None:
        return Reply(ret=-errno.EINVAL)
    path = ask.container.cgroup_path(controller, limit=ask.number == GET_LIMIT_CGROUP)
    return None if path is None else Reply(data=c_string(path))


def _get_config_item(ask: Ask) -> Reply:
    key = ask.text()
    if key is None:
        return Reply(ret=-errno.EINVAL)
    value = ask.container.config_item(key)
    return Reply(data=c_string(value)) if value else Reply(ret=-1)


def _get_name(ask: Ask) -> Reply:
    return Reply(data=c_string(ask.container.name))


def _get_lxcpath(ask: Ask) -> Reply:
    return Reply(data=c_string(ask.container.lxcpath))


def _add_state_client(ask: Ask) -> Reply | None:
    if len(ask.data) != WANTED.size:
        return None
    wanted = WANTED.unpack(ask.data)
    state = ask.container.state
    if 0 <= state < len(wanted) and wanted[state] == 1:
        return Reply(ret=state, value=state)
    ask.connection.wanted = wanted
    return Reply(ret=len(STATES), value=len(STATES), keep=True)


def _console_log(ask: Ask) -> Reply:
    if len(ask.data) != CONSOLE.size:
        return Reply(ret=-errno.EINVAL)
    clear, read, limit, write_file = CONSOLE.unpack(ask.data)
    data = ask.container.console_log(
        clear=bool(clear), read=bool(read), limit=limit, write_file=bool(write_file)
    )
    if data is None:
        return Reply(ret=-errno.EFAULT)
    if read and not data:
        return Reply(ret=-errno.ENODATA)
    return Reply(data=data)


def _serve_state_clients(ask: Ask) -> Reply:
    if not 0 <= ask.value < len(STATES):
        return Reply(ret=-errno.EINVAL)  # liblxc stores any number, and reads past its table then
    ask.container.set_state(ask.value)
    return Reply()


def _add_device(ask: Ask) -> Reply:
    return Reply(ret=-errno.EINVAL if len(ask.data) != DEVICE.size else -errno.EPERM)


def _get_cgroup2_fd(ask: Ask) -> Reply:
    fd = ask.container.cgroup2_fd(limit=ask.number == GET_LIMIT_CGROUP2_FD)
    return Reply(ret=-errno.EINVAL) if fd is None else Reply(fds=(fd,))


def _get_init_pidfd(ask: Ask) -> Reply:
    return _one_fd(ask.container.init_pidfd())


def _get_devpts_fd(ask: Ask) -> Reply:
    return _one_fd(ask.container.devpts_fd())


def _get_cgroup_ctx(ask: Ask) -> Reply:
    if not ask.data:
        return Reply(ret=-errno.EINVAL)
    context = ask.container.cgroup_context()
    fds = context.fds[:FDS_LIMIT]
    numbers = fds + (-errno.EBADF,) * (FDS_LIMIT - len(fds))
    data = CONTEXT.pack(context.layout, context.utilities, len(fds), *numbers)
    return Reply(ret=0 if fds else -errno.ENOENT, data=data[: len(ask.data)], fds=fds)


def _get_cgroup_fd(ask: Ask) -> Reply:
    if len(ask.data) != HIERARCHY.size:
        return Reply(ret=-errno.EINVAL)
    layout, utilities, kind, _fd, name = HIERARCHY.unpack(ask.data)
    controller = os.fsdecode(name.partition(b"\0")[0])
    limit = ask.number == GET_LIMIT_CGROUP_FD
    fd = ask.container.cgroup_fd(controller, kind, limit=limit)
    if fd is None:
        return Reply(ret=-errno.ENOENT)
    return Reply(data=HIERARCHY.pack(layout, utilities, kind, fd, name), fds=(fd,))


def _unavailable(number: int) -> Callable[[Ask], Reply]:
    """The answer of a command whose subject this monitor does not have."""
    return lambda _ask: Reply(ret=-number)


def _one_fd(fd: int | None) -> Reply:
    return Reply(ret=-errno.EBADF) if fd is None else Reply(fds=(fd,))


ANSWERS: Final[tuple[Callable[[Ask], Reply | None], ...]] = (
    _get_tty,
    _close,  # terminal_winch: obsolete
    _stop,
    _get_state,
    _get_init_pid,
    _get_clone_flags,
    _get_cgroup,
    _get_config_item,
    _get_name,
    _get_lxcpath,
    _add_state_client,
    _console_log,
    _serve_state_clients,
    _unavailable(errno.EINVAL),  # seccomp_notify_add_listener: no proxy is configured
    _add_device,
    _unavailable(errno.ENOENT),  # freeze, unfreeze: the tools do it directly
    _unavailable(errno.ENOENT),
    _get_cgroup2_fd,
    _get_init_pidfd,
    _get_cgroup,
    _get_cgroup2_fd,
    _get_devpts_fd,
    _unavailable(errno.EBADF),  # get_seccomp_notify_fd
    _get_cgroup_ctx,
    _get_cgroup_fd,
    _get_cgroup_fd,
    _unavailable(errno.EINVAL),  # get_systemd_scope
)
