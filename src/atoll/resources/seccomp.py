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
        legacy=("lxc.seccomp",),
        later=PART,
        later_on=_supported,
        doc="File with the policy: version, list type, and a line for each system call.",
    )
    allow_nesting: bool = key(
        "lxc.seccomp.allow_nesting",
        flag,
        default=False,
        later=PART,
        later_on=_supported,
        doc="1: load the policy even when the caller has a filter already.",
    )
    notify_cookie: str | None = key(
        "lxc.seccomp.notify.cookie",
        text,
        later=PART,
        later_on=_supported,
        doc="Text that the proxy gets with every notification.",
    )
    notify_proxy: str | None = key(
        "lxc.seccomp.notify.proxy",
        Kind(_parse_proxy),
        show=lambda address: address.removeprefix("@"),  # as LXC's getter shows an abstract name
        later=PART,
        later_on=_supported,
        doc="unix:PATH or unix:@NAME of the socket that answers notify actions.",
    )
