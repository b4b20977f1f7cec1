"""Linux security modules, AppArmor and SELinux: the wishes. Not yet: profiles and labels (part "security").

Source: reference of LXC, sections 2.2, 9.3 and 9.4. Without the module in the kernel LXC starts and ignores these keys, so
they are no reason for a warning there.
"""

from __future__ import annotations

from atoll.config.keys import Section, flag, key, many, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.host import Host

PART = "security"


def _apparmor(host: Host) -> bool:
    return host.lsm == "apparmor"


def _selinux(host: Host) -> bool:
    return host.lsm == "selinux"


class AppArmor(Section):
    """lxc.apparmor.*: the profile that init runs under."""

    profile: str | None = key(
        "lxc.apparmor.profile",
        text,
        legacy=("lxc.aa_profile",),
        later=PART,
        later_on=_apparmor,
        doc="Name of a loaded profile; unconfined; unchanged: the caller's; generated: made for the container.",
    )
    allow_incomplete: bool = key(
        "lxc.apparmor.allow_incomplete",
        flag,
        default=False,
        legacy=("lxc.aa_allow_incomplete",),
        later=PART,
        later_on=_apparmor,
        doc="1: start although the kernel's AppArmor does not control mounts.",
    )
    allow_nesting: bool = key(
        "lxc.apparmor.allow_nesting",
        flag,
        default=False,
        later=PART,
        later_on=_apparmor,
        doc="1: the generated profile allows containers inside the container.",
    )
    raw: tuple[str, ...] = key(
        "lxc.apparmor.raw",
        many(text),
        later=PART,
        later_on=_apparmor,
        doc="Line to add to the generated profile.",
    )


class SELinux(Section):
    """lxc.selinux.*: the label that init runs under."""

    context: str | None = key(
        "lxc.selinux.context",
        text,
        legacy=("lxc.se_context",),
        later=PART,
        later_on=_selinux,
        doc="Security context of init; unconfined_t changes nothing.",
    )
    keyring_context: str | None = key(
        "lxc.selinux.context.keyring",
        text,
        later=PART,
        later_on=_selinux,
        doc="Security context of the session keyring; unset: that of lxc.selinux.context.",
    )
