"""The kernel interface: one function a call, raising OSError with the call as made in a note.

Not a place for policy, logging or configuration. Sources of truth: the man pages of section 2 and the kernel's uapi headers.

Flags are plain integers spelled as the kernel spells them, not IntFlag: importing enum costs 3.5 ms of a cold start.
"""
