"""lxc.include as a declared key, so that it is listed, documented and cleared like any other; the reader (text.py) acts on it.

Source: reference of LXC, section 2.1.
"""

from __future__ import annotations

from atoll.config.keys import Section, key, many, path


class Includes(Section):
    """lxc.include: other files, read where the line stands. Not a value that can be asked for."""

    paths: tuple[str, ...] = key(
        "lxc.include",
        many(path),
        doc="File to read in this place, or a directory: all of its files NAME.conf, in the order of"
        " their names. A save writes the line, not what was read.",
        example="/usr/share/lxc/config/common.conf.d/",
        since="1.x",
    )
