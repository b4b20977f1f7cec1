"""System call filters: the wishes. Not yet: the policy language, compiling, loading and the notify socket (part "security").

Source: reference of LXC, sections 2.2 and 9.5; seccomp(2).
"""

from __future__ import annotations

from atoll.config.keys import Kind, Section, flag, key, path, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.host import Host

PART = "security"


def _parse_proxy(value: str) -> str:
    """The address behind `unix:`: a path, or @ and an abstract name."""
    address = value.removeprefix("unix:")
    if address == value or not address:
        raise ValueError("not of the form unix:PATH or unix:@NAME")
    return address


def _supported(host: Host) -> bool:
    """LXC skips the policy on a kernel without seccomp."""
    return host.seccomp


class Seccomp(Section):
    """lxc.seccomp.*: which system calls the container may make, and who is asked about some of them."""

    profile: str | None = key(
        "lxc.seccomp.profile",
        path,
        later=PART,
        later_on=_supported,
        doc="File of the host with the policy: a version, the kind of list, and a line for each"
        " system call.",
        example="/usr/share/lxc/config/common.seccomp",
        since="2.x",
    )
    allow_nesting: bool = key(
        "lxc.seccomp.allow_nesting",
        flag,
        default=False,
        later=PART,
        later_on=_supported,
        doc="1: load the policy even where the caller is filtered already.",
        example="1",
        since="5.0.2",
    )
    notify_cookie: str | None = key(
        "lxc.seccomp.notify.cookie",
        text,
        later=PART,
        later_on=_supported,
        doc="Text that the proxy gets with every notification.",
        example="c1",
        since="5.0.2",
    )
    notify_proxy: str | None = key(
        "lxc.seccomp.notify.proxy",
        Kind(_parse_proxy, name="unix socket"),
        show=lambda address: address.removeprefix("@"),
        later=PART,
        later_on=_supported,
        doc="unix:PATH or unix:@NAME, the socket that answers `notify` actions.",
        example="unix:/run/proxy.sock",
        since="5.0.2",
    )
