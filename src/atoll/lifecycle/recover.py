"""Recovery: take back what a monitor left behind that was killed in the middle.

Runs for one container at each start of it, and for all on `atoll recover`. The journals are in the run directory; one whose
writer lives is locked and left alone. Source: docs/design.md, section on the journal.
"""

from __future__ import annotations

import os

from atoll.errors import HostError, Restored, reason
from atoll.executor import Leftover, open_locked, read_all, write_line
from atoll.log import get_logger
from atoll.plan import Handler
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.host import Host
    from atoll.linux.files import OwnedFd

log = get_logger(__name__)


class Recovered(Record):
    """What was found of one dead start."""

    name: str
    lxcpath: str
    journal: str
    restored: Restored


def all_dead(host: Host) -> list[Recovered]:
    """Take back every dead start of this user. Raises HostError when the run directory cannot be read."""
    directory = f"{host.run_directory}/journal"
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(
            f"cannot look for journals in {directory}: {reason(error)}", errno=error.errno
        ) from error
    found = [_one_or_why_not(f"{directory}/{name}") for name in names]
    return [recovered for recovered in found if recovered is not None]


def _one_or_why_not(path: str) -> Recovered | None:
    try:
        return one(path)
    except HostError as error:
        return _not_understood(path, error.message)


def one(path: str) -> Recovered | None:
    """Take back the start of this journal if its writer is dead; None when it lives or there is no such journal.

    The journal is removed when all was taken back, and kept otherwise, so that another try can be made. One that cannot be
    understood (another version wrote it) is kept and reported as a problem; one without a whole first line, whose writer
    died before it had changed anything, is removed. Raises HostError when it cannot be opened.
    """
    try:
        journal = open_locked(path, create=False)
    except (FileNotFoundError, BlockingIOError):
        return None  # nothing is there, or its monitor lives
    except OSError as error:
        raise HostError(
            f"cannot open the journal {path}: {reason(error)}", errno=error.errno
        ) from error
    with journal:
        text = read_all(journal)
        if "\n" not in text:
            os.unlink(path)
            return None
        try:
            leftover = Leftover(path, text)
        except (ValueError, SyntaxError) as error:
            return _not_understood(path, f"cannot understand the journal {path}: {error}")
        restored = _take_back(leftover, journal)
        if restored.undone == restored.total:
            os.unlink(path)
    header = leftover.header
    return Recovered(
        name=str(header.get("name", "?")),
        lxcpath=str(header.get("lxcpath", "?")),
        journal=path,
        restored=restored,
    )


def _not_understood(path: str, problem: str) -> Recovered:
    restored = Restored(total=1, undone=0, problems=(problem,))
    return Recovered(name="?", lxcpath="?", journal=path, restored=restored)


def _take_back(leftover: Leftover, journal: OwnedFd) -> Restored:
    handler = Handler(report=lambda level, text: log.log(level, "%s", text))
    try:
        return leftover.take_back(
            handler, undone=lambda number: write_line(journal, f"undone\t{number}\n")
        )
    finally:
        handler.close()
