"""Recovery: take back what a monitor left behind that was killed in the middle.

Runs for one container at each start of it, and for all on `atoll recover`. The journals are in the run directory; one whose
writer lives is locked and left alone. Source: docs/design.md, section on the journal.
"""

from __future__ import annotations

import os

from atoll.errors import Restored
from atoll.executor import Leftover
from atoll.linux import files
from atoll.log import get_logger
from atoll.plan import Handler
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.host import Host

log = get_logger(__name__)


class Recovered(Record):
    """What was found of one dead start."""

    name: str
    lxcpath: str
    journal: str
    restored: Restored


def all_dead(host: Host) -> list[Recovered]:
    """Take back every dead start of this user. Raises PermissionError when the run directory cannot be read."""
    directory = f"{host.run_directory}/journal"
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    found = [one(f"{directory}/{name}") for name in names]
    return [recovered for recovered in found if recovered is not None]


def one(path: str) -> Recovered | None:
    """Take back the start of this journal if its writer is dead; None when it lives or there is no such journal.

    The journal is removed when all was taken back, and kept otherwise, so that another try can be made.
    """
    try:
        journal = files.open_fd(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with journal:
        try:
            files.lock_file(journal.fileno(), exclusive=True, block=False)
        except (BlockingIOError, PermissionError):
            return None  # its monitor lives
        try:
            leftover = Leftover(path, files.read_text(path))
        except (ValueError, SyntaxError) as error:
            log.warn("journal %s cannot be read (%s): removed", path, error)
            os.unlink(path)
            return None
        handler = Handler(report=lambda level, text: log.log(level, "%s", text))
        restored = leftover.take_back(handler)
        handler.close()
        if restored.undone == restored.total:
            os.unlink(path)
    header = leftover.header
    return Recovered(
        name=str(header.get("name", "?")),
        lxcpath=str(header.get("lxcpath", "?")),
        journal=path,
        restored=restored,
    )
