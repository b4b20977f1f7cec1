"""The import budget of a whole `atoll run`, until everything is taken back (tests/contract/test_imports.py has the rest)."""

from __future__ import annotations

import subprocess
import sys

from abilities import needs
from contract import sources
from contract.test_imports import BARE, DRIVERS, RUN

pytestmark = [needs("root", "pidns", "netns")]


def test_a_cold_run_loads_this_and_no_more() -> None:
    code = (
        f"import sys; sys.path.insert(0, {sources.SRC!r}); had = set(sys.modules)\n"
        "import atoll.__main__ as m; status = m.main(['atoll', 'run', '--', '/bin/true'])\n"
        "print(status, *sorted(set(sys.modules) - had))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    status, *loaded = done.stdout.split()
    assert (status, done.stderr) == ("0", "")
    assert set(loaded) - BARE - DRIVERS == RUN
