"""The isolation isolates, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import snapshot
from isolation import IsolationError, run_isolated
from isolation.outer import STATE

pytestmark = pytest.mark.privileged
OUTER = [sys.executable, os.path.dirname(os.path.abspath(__file__))]

DAMAGE = """
chmod 600 /dev/null && touch /etc/left && chmod 700 /etc/hostname && touch /run/left
ip link add left type dummy 2>/dev/null || ip link add left type bridge
mount -t tmpfs tmpfs /mnt
for d in $(find /sys/fs/cgroup -maxdepth 1 -mindepth 1 -type d); do mkdir $d/left; done
if [ -e /sys/fs/cgroup/freezer ]; then
  sleep 1000 & echo $! > /sys/fs/cgroup/freezer/left/cgroup.procs
  echo FROZEN > /sys/fs/cgroup/freezer/left/freezer.state
fi
(setsid sleep 1000 &)
"""


@pytest.mark.parametrize("layout", ["hybrid", "v1", "v2", "host"])
def test_outer_takes_the_damage(layout: str) -> None:
    damage = DAMAGE if layout != "host" else "chmod 600 /dev/null; touch /etc/left"
    done = subprocess.run(
        [*OUTER, f"--cgroup={layout}", "--", "sh", "-c", f"{damage}\nexit 7"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")


def test_signal_to_the_worker_is_its_status() -> None:
    done = subprocess.run([*OUTER, "--", "sh", "-c", "kill -KILL $$"], check=False)
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_at_once(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*OUTER, "--", "sh", "-c", f"{DAMAGE}\necho ready; exec sleep 1000"], stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    process.stdout.close()


def test_next_run_removes_what_a_killed_supervisor_left() -> None:
    process = subprocess.Popen(
        [*OUTER, "--", "sh", "-c", f"{DAMAGE}\necho ready; exec sleep 1000"], stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    process.stdout.close()
    subprocess.run([*OUTER, "--", "true"], check=True)
    leftovers = [
        name for name in os.listdir("/var/tmp") if name.startswith(os.path.basename(STATE))
    ]
    own = os.environ.get("TMPDIR", "")
    assert [name for name in leftovers if name not in own and _abandoned(name)] == []


def _abandoned(name: str) -> bool:
    import fcntl

    with open(f"/var/tmp/{name}/lock", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_inner_gives_results_errors_and_skips_back() -> None:
    assert run_isolated(lambda: (os.getpid(), os.listdir("/sys/class/net"))) == (2, ["lo"])
    with pytest.raises(IsolationError, match="ZeroDivisionError"):
        run_isolated(lambda: 1 // 0)
    with pytest.raises(pytest.skip.Exception, match="because"):
        run_isolated(lambda: pytest.skip("because"))
    done = run_isolated(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_inner_cgroups_are_fresh_and_removed() -> None:
    def body() -> list[str]:
        left = [d for d, names, _files in os.walk("/sys/fs/cgroup") if d.endswith("/left")]
        for root in [d for d, _n, files in os.walk("/sys/fs/cgroup") if "cgroup.procs" in files]:
            os.mkdir(f"{root}/left")
        return left

    assert run_isolated(body, cgroup=True) == []
    assert run_isolated(body, cgroup=True) == []


def test_inner_timeout() -> None:
    with pytest.raises(TimeoutError):
        run_isolated(lambda: time.sleep(100), timeout=0.1)


@pytest.mark.isolated(cgroup=True)
def test_marker_runs_the_test_inside(tmp_path: object) -> None:
    assert os.getpid() == 2
    assert os.path.isdir(str(tmp_path))
    socket.sethostname("changed")


def test_snapshot_sees_damage(tmp_path: object) -> None:
    before = snapshot.HostSnapshot.take(str(tmp_path))
    with open(f"{tmp_path}/new", "w", encoding="ascii"):
        after = snapshot.HostSnapshot.take(str(tmp_path))
    lines = snapshot.diff(before, after)
    assert [line.split()[:2] for line in lines] == [["+", "descriptor"], ["+", "file"]]
    os.unlink(f"{tmp_path}/new")
