"""Which module declares which key: the index of the code base, as strings; and the names that keys had before LXC 3.

A resource module is imported when a key of its prefix is looked up, not before: most configurations use a few. The second
word of a key decides (lxc.WORD). Sources: reference of LXC, sections 2.2 and 2.4; a test holds the table against them.
"""

from __future__ import annotations

import sys

from atoll.config.keys import Indexed, Key, Section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

OWNERS: dict[str, str] = {
    "lxc.apparmor": "atoll.resources.lsm",
    "lxc.arch": "atoll.resources.limits",
    "lxc.autodev": "atoll.resources.mounts",
    "lxc.cap": "atoll.resources.credentials",
    "lxc.cgroup": "atoll.resources.cgroup",
    "lxc.cgroup2": "atoll.resources.cgroup",
    "lxc.console": "atoll.resources.terminal",
    "lxc.environment": "atoll.resources.credentials",
    "lxc.ephemeral": "atoll.resources.lifetime",
    "lxc.execute": "atoll.resources.lifetime",
    "lxc.group": "atoll.resources.lifetime",
    "lxc.hook": "atoll.resources.hooks",
    "lxc.idmap": "atoll.resources.idmap",
    "lxc.include": "atoll.config.include",
    "lxc.init": "atoll.resources.credentials",
    "lxc.keyring": "atoll.resources.credentials",
    "lxc.log": "atoll.resources.lifetime",
    "lxc.monitor": "atoll.resources.lifetime",
    "lxc.mount": "atoll.resources.mounts",
    "lxc.namespace": "atoll.resources.namespaces",
    "lxc.net": "atoll.resources.network",
    "lxc.no_new_privs": "atoll.resources.credentials",
    "lxc.prlimit": "atoll.resources.limits",
    "lxc.proc": "atoll.resources.limits",
    "lxc.pty": "atoll.resources.terminal",
    "lxc.rootfs": "atoll.resources.storage",
    "lxc.sched": "atoll.resources.limits",
    "lxc.seccomp": "atoll.resources.seccomp",
    "lxc.selinux": "atoll.resources.lsm",
    "lxc.signal": "atoll.resources.lifetime",
    "lxc.start": "atoll.resources.lifetime",
    "lxc.sysctl": "atoll.resources.limits",
    "lxc.time": "atoll.resources.namespaces",
    "lxc.tty": "atoll.resources.terminal",
    "lxc.uts": "atoll.resources.namespaces",
}

LEGACY: dict[str, str | None] = {
    "lxc.aa_allow_incomplete": "lxc.apparmor.allow_incomplete",
    "lxc.aa_profile": "lxc.apparmor.profile",
    "lxc.console": "lxc.console.path",
    "lxc.devttydir": "lxc.tty.dir",
    "lxc.haltsignal": "lxc.signal.halt",
    "lxc.id_map": "lxc.idmap",
    "lxc.init_cmd": "lxc.init.cmd",
    "lxc.init_gid": "lxc.init.gid",
    "lxc.init_uid": "lxc.init.uid",
    "lxc.kmsg": None,
    "lxc.logfile": "lxc.log.file",
    "lxc.loglevel": "lxc.log.level",
    "lxc.mount": "lxc.mount.fstab",
    "lxc.network": "lxc.net",
    "lxc.pivotdir": None,
    "lxc.pts": "lxc.pty.max",
    "lxc.rebootsignal": "lxc.signal.reboot",
    "lxc.rootfs": "lxc.rootfs.path",
    "lxc.rootfs.backend": "lxc.rootfs.path",
    "lxc.se_context": "lxc.selinux.context",
    "lxc.seccomp": "lxc.seccomp.profile",
    "lxc.stopsignal": "lxc.signal.stop",
    "lxc.syslog": "lxc.log.syslog",
    "lxc.tty": "lxc.tty.max",
    "lxc.utsname": "lxc.uts.name",
}
"""Old name -> present name; None: the key went away without a successor and has no effect.

Besides these: lxc.network.x and lxc.network.N.x -> lxc.net.N.x, and lxc.limit.x -> lxc.prlimit.x (text.py).
"""

LEGACY_NETWORK = {"ipv4": "ipv4.address", "ipv6": "ipv6.address"}
"""Sub-keys of lxc.network whose name changed too; the others kept theirs below lxc.net.N."""


class Target:
    """What a key's name stands for: `key` of `section`; `sub` of pairs; `nics` and `index` of a numbered section.

    `key` is None for names that only clear: `lxc.net`, `lxc.net.0`, and a section's group (`lxc.hook`).
    """

    __slots__ = ("index", "key", "numbered", "section", "sub")

    def __init__(
        self,
        section: type[Section],
        key: Key | None,
        *,
        sub: str = "",
        numbered: Indexed | None = None,
        index: int = -1,
    ) -> None:
        self.section = section
        self.key = key
        self.sub = sub
        self.numbered = numbered
        self.index = index


class Declarations:
    """The keys of one module by name; made once for a module, when a key of its prefix is looked up first."""

    __slots__ = ("exact", "names", "numbered", "prefixes")

    def __init__(self, sections: list[type[Section]]) -> None:
        self.names: list[str] = []
        self.exact: dict[str, Target] = {}
        self.prefixes: list[tuple[str, Key]] = []
        self.numbered: list[tuple[str, Indexed, dict[str, Key]]] = []
        for section in sections:
            if section.section_group:
                self.exact[section.section_group] = Target(section, None)
            for declaration in section.section_fields.values():
                self._add(section, declaration)

    def _add(self, section: type[Section], declaration: Key | Indexed) -> None:
        name = declaration.name
        if isinstance(declaration, Indexed):
            prefix = f"{name}.N."
            items = declaration.item.section_keys.values()
            self.numbered.append(
                (f"{name}.", declaration, {k.name[len(prefix) :]: k for k in items})
            )
            self.exact[name] = Target(section, None, numbered=declaration)
            self.names += [name, *(key.name for key in items)]
        elif name.endswith(".*"):
            self.prefixes.append((name[:-1], declaration))
            self.exact.setdefault(name[:-2], Target(section, declaration))
            self.exact[name] = Target(section, declaration)
            self.names.append(name)
        elif ".N." not in name:  # those of an item are reached through the numbered field
            self.exact[name] = Target(section, declaration)
            self.names.append(name)

    def find(self, name: str) -> Target | None:
        """The target of a key's full name, or None."""
        found = self.exact.get(name)
        if found is not None:
            return found
        for prefix, numbered, items in self.numbered:
            if name.startswith(prefix):
                return _numbered(name[len(prefix) :], numbered, items)
        for prefix, key in self.prefixes:
            if name.startswith(prefix) and len(name) > len(prefix):
                return Target(key.section, key, sub=name[len(prefix) :])
        return None


def _numbered(rest: str, numbered: Indexed, items: dict[str, Key]) -> Target | None:
    number, _dot, sub = rest.partition(".")
    key = items.get(sub)
    if (
        not (number.isascii() and number.isdigit())
        or len(number) > 9
        or (rest != number and not key)
    ):
        return None
    return Target(numbered.section, key, numbered=numbered, index=int(number))


_loaded: dict[str, Declarations] = {}


def find(name: str) -> Target | None:
    """What declares `name`, or None when no key has that name. Imports the module that owns its prefix."""
    end = name.find(".", 4)
    head = name if end < 0 else name[:end]
    module = OWNERS.get(head)
    if module is None:
        return None
    declared = _loaded.get(module) or _load(module)
    found = declared.find(name)
    if found is None and not any(other.startswith(head) for other in declared.names):
        raise RuntimeError(f"internal error: {module} owns {head} but declares no key of it")
    return found


def declarations(module: str) -> Declarations:
    """The keys that a module declares; imports it."""
    return _loaded.get(module) or _load(module)


def names() -> Iterator[str]:
    """Every key's name, in the order of the table and of declaration. Imports every module that owns keys."""
    for module in dict.fromkeys(OWNERS.values()):
        yield from declarations(module).names


def names_below(prefix: str) -> list[str]:
    """The names of keys that begin with `prefix.`; imports the module that owns it."""
    end = prefix.find(".", 4)
    module = OWNERS.get(prefix if end < 0 else prefix[:end])
    if module is None:
        return []
    return [name for name in declarations(module).names if name.startswith(f"{prefix}.")]


def _load(name: str) -> Declarations:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"internal error: {name} owns keys but cannot be imported: {error}"
        ) from error
    module = sys.modules[name]
    sections = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Section)
        and f"{value.__module__}.".startswith(f"{name}.")
    ]
    _loaded[name] = Declarations(sections)
    return _loaded[name]


# ------------------------------------------------------------------------------- the error path
DISTANCE_LIMIT = 7
"""Edits between what was written and what is suggested; more of them cost time, and are another word."""


def nearest(name: str) -> tuple[str, ...]:
    """At most three known names that are spelt most like `name`, best first; none when nothing is near."""
    number = next((word for word in name.split(".")[2:3] if word.isdigit()), "N")
    wanted = name.replace(f".{number}.", ".N.") if number != "N" else name
    limit = min(max(2, (len(name) - 4) // 3), DISTANCE_LIMIT)
    scored = []
    for known in (*_loadable_names(), *LEGACY):
        candidate = (LEGACY[known] or known) if known in LEGACY else known
        distance = _distance(wanted, known, limit)
        if distance <= limit:
            scored.append((distance, candidate))
    best: dict[str, None] = {}
    for distance, candidate in sorted(scored):
        if distance <= _worth(scored):
            best.setdefault(candidate.replace(".N.", f".{number}."))
    return tuple(best)[:3]


def _worth(scored: list[tuple[int, str]]) -> int:
    """Suggestions at most this far away are worth showing: those about as near as the nearest."""
    return min(scored)[0] + 1


def _loadable_names() -> list[str]:
    known: list[str] = []
    for module in dict.fromkeys(OWNERS.values()):
        try:
            known += declarations(module).names
        except RuntimeError:  # a broken module must not hide the user's spelling mistake
            continue
    return known


def _distance(one: str, other: str, limit: int) -> int:
    """Edits (insert, delete, replace, swap neighbours) from one to the other; more than `limit` is `limit` + 1."""
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1]
