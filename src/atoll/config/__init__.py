"""The lxc.container.conf language: declarations (keys), files (text), who declares what (owners), lxc.conf (system)."""
