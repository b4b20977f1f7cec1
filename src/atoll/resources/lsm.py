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
        later=PART,
        later_on=_apparmor,
        doc="AppArmor profile of init: the name of a loaded one; `unconfined`; `unchanged`, the"
        " caller's; or `generated`, made for this container. Unset:"
        " lxc-container-default-cgns. No effect on a kernel without AppArmor.",
        example="generated",
        since="2.x",
    )
    allow_incomplete: bool = key(
        "lxc.apparmor.allow_incomplete",
        flag,
        default=False,
        later=PART,
        later_on=_apparmor,
        doc="1: start although the kernel's AppArmor does not control mounts.",
        example="1",
        since="2.x",
    )
    allow_nesting: bool = key(
        "lxc.apparmor.allow_nesting",
        flag,
        default=False,
        later=PART,
        later_on=_apparmor,
        doc="1: the generated profile allows containers inside the container, and a proc and a"
        " sysfs are mounted below /dev/.lxc for them.",
        example="1",
        since="5.0.2",
    )
    raw: tuple[str, ...] = key(
        "lxc.apparmor.raw",
        many(text),
        later=PART,
        later_on=_apparmor,
        doc="Rule, as apparmor.d(5) writes it, to add to the generated profile.",
        example="deny /proc/kcore r,",
        since="5.0.2",
    )


class SELinux(Section):
    """lxc.selinux.*: the label that init runs under."""

    context: str | None = key(
        "lxc.selinux.context",
        text,
        later=PART,
        later_on=_selinux,
        doc="Security context of init. Unset, or unconfined_t: the caller's.",
        example="system_u:system_r:lxc_t:s0:c22",
        since="2.x",
    )
    keyring_context: str | None = key(
        "lxc.selinux.context.keyring",
        text,
        later=PART,
        later_on=_selinux,
        doc="Security context of the session keyring. Unset: lxc.selinux.context.",
        example="system_u:system_r:lxc_t:s0:c22",
        since="5.0.2",
    )
