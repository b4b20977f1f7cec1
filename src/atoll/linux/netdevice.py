"""Network devices without netlink: bringing up the loopback, which every container wants and many want alone.

Everything else is in netlink.py, which costs a millisecond to load. Sources of truth: netdevice(7), linux/sockios.h.
"""

from __future__ import annotations

import _socket
import fcntl
import struct

from atoll.linux.libc import entering, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

IFNAMSIZ: Final = 16
"""Bytes of a device's name with the zero byte at its end."""
_IFF_UP: Final = 1
_SIOCSIFFLAGS: Final = 0x8914
_IFREQ: Final = struct.Struct("=16sh22x")


def bring_up_loopback() -> None:
    """Bring up lo of this network namespace, which gives it 127.0.0.1 and ::1; netdevice(7)."""
    try:
        entering("ioctl", "lo", "SIOCSIFFLAGS")
        # A socket of any kind will do; this one needs no protocol that a kernel may lack.
        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            fcntl.ioctl(channel.fileno(), _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))
        finally:
            channel.close()
    except OSError as error:
        note(error, "ioctl(2): request=SIOCSIFFLAGS ifr_name=lo ifr_flags=IFF_UP")
        raise
