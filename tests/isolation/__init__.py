"""The isolation that tests run in: a machine that may be broken, because it is thrown away.

Two kinds.  The *outer* one (`outer.py`, `python tests/isolation -- COMMAND…`, `make test`) is made once
for a whole test run and takes the place of the machine: namespaces, cgroups of its own in every
hierarchy, private /dev, overlays over the system's directories.  The *inner* one (`inner.py`,
`run_isolated`) is a few namespaces for one test, in some milliseconds.

Why each part exists was seen: a runtime under test chmodded the machine's /dev/null (devtmpfs is one file
system for the whole machine); a test's chmod followed a symlink to /bin/busybox; users were added to
/etc/passwd; a frozen v1 cgroup kept a process that nothing could kill.

Not a part of Atoll: it uses none of its code, so that a fault there cannot hide here.
"""

from __future__ import annotations

from isolation.inner import IsolationError, run_isolated
from isolation.marker import Marker, inside

__all__ = ["IsolationError", "Marker", "inside", "run_isolated"]
