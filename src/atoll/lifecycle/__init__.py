"""The life of a container: the start sequence, both sides of the clone, the monitor, the command socket, attach."""
