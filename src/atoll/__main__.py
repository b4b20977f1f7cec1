"""Multicall: `atoll COMMAND`, `python -m atoll COMMAND`, or a link named lxc-start. It finds the tool and calls it.

Imports only what the chosen tool needs (cli/options.py says how long that may take).
"""

from __future__ import annotations

import gc
import os
import sys

from atoll.cli import options
from atoll.errors import EXIT_FAILURE, EXIT_OK, EXIT_SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool that argv[0] or the first argument names; return the exit status."""
    argv = list(sys.argv if arguments is None else arguments)
    program = argv[0].rpartition("/")[2] if argv else ""
    if program in options.TOOLS:
        return options.run(program, argv[1:])
    try:
        return _command(argv[1:])
    except options.OutputClosedError:
        return EXIT_SIGNAL + options.SIGPIPE
    except KeyboardInterrupt:
        return EXIT_SIGNAL + options.SIGINT


def _command(argv: Sequence[str]) -> int:
    out, err = options.Output(1), options.Output(2)
    command = argv[0] if argv else ""
    if command in {"-h", "--help", "-?", "help"} and len(argv) == 1:
        out.write(options.overview())
        return EXIT_OK
    if command == "help":
        return _command((*argv[1:], "--help"))
    if command == "--version":
        out.line(options.version_text("atoll"))
        return EXIT_OK
    name = options.find(command)
    if name is not None:
        return options.run(name, argv[1:])
    if not command:
        err.write(options.overview())
        return EXIT_FAILURE
    near = options.nearest(command)
    hint = f"did you mean {' or '.join(near)}?" if near else "see atoll --help"
    err.line(f"atoll: there is no command '{command}'; {hint}")
    return EXIT_FAILURE


def console() -> NoReturn:
    """What the installed command calls: main, and out at once; tearing the interpreter down costs 3 ms."""
    gc.set_threshold(20_000)  # nothing that a tool loads is garbage; to look for some costs 2 ms
    _reserve_standard_descriptors()
    _forget_coercion()
    try:
        status = main()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:  # what print left in the buffers cannot be written
        status = EXIT_FAILURE
    os._exit(status)


def _reserve_standard_descriptors() -> None:
    """Where 0, 1 or 2 is closed (`<&-`), take its number, or a socket of ours would get it and pass for the command's input.

    An O_PATH descriptor can be neither read nor written: to the command it is as if it were closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open("/dev/null", os.O_PATH), True)


def _forget_coercion() -> None:
    """Take back the LC_CTYPE that Python sets in the C locale (PEP 538): attached programs and hooks get our environment."""
    if os.environ.get("LC_CTYPE") in {"C.UTF-8", "C.utf8", "UTF-8"}:
        with open(
            "/proc/self/environ", "rb"
        ) as file:  # as execve(2) gave it; setenv(3) does not change it
            if b"\0LC_CTYPE=" not in b"\0" + file.read():
                del os.environ["LC_CTYPE"]


if __name__ == "__main__":
    console()
