"""The table of tools, and what all tools share: getopt_long's command line, help, output, errors, exit status.

Not what a tool does: that is one function `tool(call) -> int`, imported when it is called. The text of the table is the help
and the parser at once. A tool gets everything it may use in its Call and keeps nothing between two calls, because it
may run in a forked child of a warm process. Source of truth: reference of LXC, section 11 (observed on 5.0.2); getopt(3).
"""

from __future__ import annotations

import os
import select

from atoll import __version__, errors, log
from atoll.errors import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_RUNTIME,
    EXIT_SIGNAL,
    AtollError,
    Interrupted,
)
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Final

LXC_VERSION: Final = "5.0.2"  # whose commands these are
SIGINT: Final = 2
SIGPIPE: Final = 13
REQUIRED: Final = "required"
OPTIONAL: Final = "optional"
NONE: Final = "none"


class Tool(Record):
    """One row of the table.

    `run` is "module:function". `options` is help text that is also the parser's table (parse_table). `name` says whether a
    container's name comes from -n or the first operand. `stop`: options end at the first operand, as in `docker run`.
    `paths`: several -P are taken. `failure` is the exit status for errors of the tool itself.
    """

    run: str
    summary: str
    usage: str
    options: str = ""
    examples: tuple[str, ...] = ()
    name: str = REQUIRED
    paths: bool = False
    stop: bool = False
    failure: int = EXIT_FAILURE


class Option(Record):
    """One option: `value` is the placeholder of its value in the help, "" for a flag."""

    long: str
    short: str = ""
    value: str = ""
    optional: bool = False
    repeat: bool = False


COMMON: Final = """
  -n, --name=NAME           the container's name (or the first operand)
  -P, --lxcpath=PATH...     directory of the containers
  -o, --logfile=FILE        append the log to FILE; "none" writes none
  -l, --logpriority=LEVEL   least level to log: TRACE DEBUG INFO NOTICE WARN ERROR
  -q, --quiet               no messages
  -?, --help                this help (also -h)
      --usage               the command line in short
      --version             the version
"""
_RCFILE: Final = """
      --rcfile=FILE         read this configuration instead of the container's
"""
_SHARES: Final = """
      --share-net=WHAT      join a network: of a container's name, a pid or a path
      --share-ipc=WHAT      the same for System V IPC and message queues
      --share-uts=WHAT      the same for the host name
      --share-pid=WHAT      the same for process ids
"""
_PLANS: Final = """
      --explain             print every step of this start and do none of them
      --json                with --explain: as JSON
      --timeline=FILE       write how long each step took, as a Chrome trace
"""

TOOLS: Final[Mapping[str, Tool]] = {
    "run": Tool(
        run="atoll.cli.manage:run",
        summary="run a command in a new container and take everything back",
        usage="[OPTION…] [--] COMMAND [ARGUMENT…]",
        name=OPTIONAL,
        stop=True,
        failure=EXIT_RUNTIME,
        options="""
      --image=DIR|host      root file system: a directory, or this machine's own (default)
      --config=FILE         read a container configuration first
  -s, --define=KEY=VALUE... set any lxc.* key
  -e, --env=NAME=VALUE...   set an environment variable (NAME alone: as it is here)
  -w, --workdir=DIR         directory to start in
  -u, --user=USER           UID[:GID], or a name of the container's
      --bind=SRC:DST[:ro]... show a host directory or file in the container
      --read-only           mount the root file system read-only
      --keep                keep the container's files afterwards
"""
        + _PLANS,
        examples=(
            "atoll run -- sh -c 'echo hello from $(hostname)'",
            "atoll run --bind $PWD:/src:ro --workdir /src -- make test",
            "atoll run -s lxc.net.0.type=none -- ip -brief address",
        ),
    ),
    "check": Tool(
        run="atoll.cli.check:run",
        summary="tell every problem of configurations at once; exit 1 when one is an error",
        usage="NAME|FILE… [--host] [--json]",
        name=NONE,
        options="""
      --host                what this machine lacks for them as well
      --json                as JSON, for editors
""",
        examples=("atoll check web --host", "atoll check web.conf /usr/share/lxc/config/*.conf"),
    ),
    "explain": Tool(
        run="atoll.cli.manage:explain",
        summary="print every step of a start, and do none of them",
        usage="NAME | -f FILE [OPTION…] [-- COMMAND…]",
        name=OPTIONAL,
        options="""
  -f, --rcfile=FILE         explain this configuration
  -s, --define=KEY=VALUE... set a key on top of the configuration
      --json                as JSON
""",
        examples=("atoll explain web", "atoll explain -f web.conf --json"),
    ),
    "config": Tool(
        run="atoll.cli.configure:config",
        summary="show or change a container's configuration",
        usage="NAME [VERB [KEY [VALUE…]]] | -f FILE [VERB …]",
        name=OPTIONAL,
        stop=True,
        options="""
  -f, --rcfile=FILE         this file instead of a container's
      --effective           show: what holds, with included files and defaults
      --where               show, get: the file and line of each
      --json                show: as JSON
      --diff                set, add, unset: show what would change, and change nothing
  VERB is what to do:
      show                  print the settings of the file, or those below each KEY (default)
      get                   print values that hold, as LXC's getters do; nothing where none is
      set                   give KEY one value in place of what it has, or several to a list
      add                   add values to a list
      unset                 take the lines of each KEY away, so that its default holds
  Comments, blank lines and order stay. VALUE is what would stand in the file. A change that
  makes a line unusable is refused; the file is replaced whole, or not at all.
""",
        examples=(
            "atoll config web",
            "atoll config web show --effective --where lxc.net",
            "atoll config web set lxc.start.order -5",
            "atoll config web add lxc.mount.entry '/srv srv none bind,create=dir 0 0'",
        ),
    ),
    "recover": Tool(
        run="atoll.cli.manage:recover",
        summary="take back what a killed monitor left on the host",
        usage="[NAME…]",
        name=NONE,
        examples=("atoll recover", "atoll recover web"),
    ),
    "install-tools": Tool(
        run="atoll.cli.manage:install_tools",
        summary="make the lxc-* commands as symbolic links in a directory",
        usage="DIR",
        name=NONE,
        options="""
      --force               replace links that are there
""",
        examples=("atoll install-tools ~/.local/bin",),
    ),
    "lxc-attach": Tool(
        run="atoll.cli.enter:lxc_attach",
        summary="run a command, or a shell, inside a running container",
        usage="-n NAME [OPTION…] [-- COMMAND…]",
        options="""
  -e, --elevated-privileges[=WHAT]  keep privileges: CGROUP, CAP, LSM joined with |, or all of them
  -a, --arch=ARCH           the program's architecture
  -s, --namespaces=FLAGS    only these: MOUNT PID UTSNAME IPC USER NETWORK, joined with |
  -R, --remount-sys-proc    mount /proc and /sys anew (with -s without MOUNT)
      --clear-env           start with an empty environment
      --keep-env            keep the caller's environment (default)
      --keep-var=NAME...    with --clear-env: keep this variable
  -v, --set-var=NAME=VALUE...  set a variable
  -L, --pty-log=FILE        append what the terminal shows to FILE
  -f, --rcfile=FILE         read this configuration instead of the container's
  -u, --uid=UID             user id inside the container
  -g, --gid=GID             group id inside the container
  -c, --context=LABEL       SELinux label
""",
        examples=("lxc-attach -n web", "lxc-attach -n web -- ps aux"),
    ),
    "lxc-checkconfig": Tool(
        run="atoll.cli.configure:lxc_checkconfig",
        summary="try out what this machine lets this user do",
        usage="[--json]",
        name=NONE,
        options="""
      --json                as JSON
""",
        examples=("lxc-checkconfig", "CONFIG=/boot/config-6.12.0 lxc-checkconfig"),
    ),
    "lxc-config": Tool(
        run="atoll.cli.configure:lxc_config",
        summary="show the settings of the system (lxc.conf)",
        usage="-l | KEY",
        name=NONE,
        options="""
  -l, --list                list the keys
""",
        examples=("lxc-config lxc.lxcpath",),
    ),
    "lxc-create": Tool(
        run="atoll.cli.manage:lxc_create",
        summary="make a container from a template",
        usage="-n NAME -t TEMPLATE [OPTION…] [-- TEMPLATE ARGUMENTS…]",
        options="""
  -f, --config=FILE         begin with this configuration
  -t, --template=TEMPLATE   name or path of the template, or none
  -B, --bdev=TYPE           storage of the root file system: dir, overlay, btrfs, …, best
      --dir=DIR             directory of the root file system (dir)
      --lvname=NAME         logical volume (lvm)
      --vgname=NAME         volume group (lvm)
      --thinpool=NAME       thin pool (lvm)
      --rbdname=NAME        block device (rbd)
      --rbdpool=NAME        pool (rbd)
      --zfsroot=PATH        parent data set (zfs)
      --fstype=TYPE         file system to make (lvm, loop, rbd)
      --fssize=SIZE         its size, with a unit: 500M
""",
        examples=("lxc-create -n web -t busybox",),
    ),
    "lxc-destroy": Tool(
        run="atoll.cli.manage:lxc_destroy",
        summary="remove a container and its files",
        usage="-n NAME [-f] [-s]",
        options="""
  -s, --snapshots           its snapshots as well
  -f, --force               stop it first when it runs
"""
        + _RCFILE,
        examples=("lxc-destroy -n web -f",),
    ),
    "lxc-execute": Tool(
        run="atoll.cli.manage:lxc_execute",
        summary="run one command in a container, under a small init",
        usage="-n NAME [OPTION…] [-- COMMAND…]",
        options="""
  -d, --daemon              go to the background when it runs
  -f, --rcfile=FILE         read this configuration instead of the container's
  -s, --define=KEY=VALUE... set a key on top of the configuration
  -u, --uid=UID             user id of the command
  -g, --gid=GID             group id of the command
"""
        + _SHARES
        + _PLANS,
        examples=("lxc-execute -n web -- ls -l /",),
    ),
    "lxc-info": Tool(
        run="atoll.cli.inspect:lxc_info",
        summary="show the state, addresses and use of a container",
        usage="-n NAME [OPTION…]",
        options="""
  -c, --config=KEY...       show a key of the configuration on disk
  -i, --ips                 show the addresses
  -p, --pid                 show init's process id
  -S, --stats               show what the container uses
  -H, --no-humanize         raw numbers; with a single item its bare value
  -s, --state               show the state
      --json                as JSON
"""
        + _RCFILE,
        examples=("lxc-info -n web", "lxc-info -n web -p -H"),
    ),
    "lxc-ls": Tool(
        run="atoll.cli.inspect:lxc_ls",
        summary="list containers",
        usage="[OPTION…] [REGEX]",
        name=NONE,
        paths=True,
        options="""
  -1, --line                one name a line
  -f, --fancy               a table
  -F, --fancy-format=COLUMNS  with -f: NAME STATE PID RAM SWAP AUTOSTART GROUPS INTERFACE IPV4 IPV6
                            UNPRIVILEGED, joined with commas
      --active              only those with a monitor
      --running             only those that are not stopped
      --frozen              only frozen ones
      --stopped             only stopped ones
      --defined             only those with a configuration
      --nesting[=NUM]       containers inside containers as well, NUM levels deep (5)
      --filter=REGEX        only names that match
  -g, --groups=GROUPS       only members of all these groups, joined with commas
      --json                as JSON
""",
        examples=("lxc-ls -f", "lxc-ls --running '^web'"),
    ),
    "lxc-start": Tool(
        run="atoll.cli.manage:lxc_start",
        summary="start a container",
        usage="-n NAME [OPTION…] [-- INIT [ARGUMENT…]]",
        options="""
  -d, --daemon              go to the background when it runs (default)
  -F, --foreground          stay, with this terminal as the container's console
  -p, --pidfile=FILE        write the monitor's process id
  -f, --rcfile=FILE         read this configuration instead of the container's
  -c, --console=FILE        use this terminal or file as the console
  -L, --console-log=FILE    append what the console shows to FILE
  -C, --close-all-fds       close inherited descriptors (-d does)
  -s, --define=KEY=VALUE... set a key on top of the configuration
"""
        + _SHARES
        + _PLANS,
        examples=("lxc-start -n web", "lxc-start -n web --explain"),
    ),
    "lxc-stop": Tool(
        run="atoll.cli.manage:lxc_stop",
        summary="stop a container",
        usage="-n NAME [OPTION…]",
        options="""
  -r, --reboot              restart it instead
  -W, --nowait              do not wait for it
  -t, --timeout=SECONDS     wait so long before killing it (60; -1: for ever)
  -k, --kill                kill it at once
      --nolock              take no locks (with -k only)
      --nokill              do not kill it when the time is up
"""
        + _RCFILE,
        examples=("lxc-stop -n web -t 10",),
    ),
    "lxc-update-config": Tool(
        run="atoll.cli.configure:lxc_update_config",
        summary="rewrite an old configuration with the present names of keys",
        usage="-c FILE [--diff]",
        name=NONE,
        options="""
  -c, --config=FILE         the configuration; the old one is kept as FILE.backup
      --diff                show what would change, and change nothing
""",
        examples=("lxc-update-config -c config --diff",),
    ),
    "lxc-wait": Tool(
        run="atoll.cli.inspect:lxc_wait",
        summary="wait until a container is in one of some states",
        usage="-n NAME -s STATE[|STATE…] [-t SECONDS]",
        options="""
  -s, --state=STATES        STOPPED STARTING RUNNING STOPPING ABORTING FREEZING FROZEN THAWED,
                            joined with |
  -t, --timeout=SECONDS     give up after so long (-1: never)
"""
        + _RCFILE,
        examples=("lxc-wait -n web -s RUNNING -t 10", "lxc-wait -n web -s 'STOPPED|FROZEN'"),
    ),
}


def find(command: str) -> str | None:
    """The tool that a command names: itself, or `start` for `lxc-start`; None when there is none."""
    for name in (command, f"lxc-{command}"):
        if name in TOOLS:
            return name
    return None


def nearest(command: str) -> tuple[str, ...]:
    """Tools with a similar name, for the message about an unknown one."""
    from difflib import get_close_matches

    known = [name.removeprefix("lxc-") for name in TOOLS]
    close = get_close_matches(command.removeprefix("lxc-"), known, n=3)
    return tuple(name if name in TOOLS else f"lxc-{name}" for name in close)


# --------------------------------------------------------------------------------------- parsing


class UsageError(AtollError):
    """A command line that cannot be used. `help`: the tool's help follows the message."""

    def __init__(self, message: str, *, help: bool = False) -> None:  # noqa: A002 - what it is
        super().__init__(message)
        self.help = help


class Parsed(Record):
    """A command line taken apart. `values` has every option of the table; `before` operands stood before `--`."""

    values: dict[str, object]
    operands: tuple[str, ...]
    before: int


def parse_table(text: str) -> tuple[Option, ...]:
    """The options of a help text: lines of `  -s, --long=VALUE...   words`.

    `[=VALUE]` is optional, `...` says that it may come again. Lines that are indented further than
    an option continue its words.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if not words or not words[0].startswith("-") or line.startswith(" " * 8):
            continue
        short = words.pop(0)[1] if words[0][1] != "-" else ""
        spec = words[0].removeprefix("--")
        repeat = spec.endswith("...")
        long, equals, value = spec.removesuffix("...").partition("=")
        optional = long.endswith("[")
        found.append(
            Option(
                long=long.rstrip("["),
                short=short,
                value=value.removesuffix("]") if optional else value if equals else "",
                optional=optional,
                repeat=repeat,
            )
        )
    return tuple(found)


def parse(argv: Sequence[str], options: Sequence[Option], *, stop: bool = False) -> Parsed:
    """Take a command line apart as getopt_long does: permutation, abbreviations, clusters, `--`.

    A flag's value is a bool, a repeatable option's a list, another's a text or None ("" for an optional value left out).
    The first of help, usage and version ends the parsing, as it does in LXC. Raises UsageError with getopt's own words.
    """
    values: dict[str, object] = {
        option.long: [] if option.repeat else None if option.value else False for option in options
    }
    operands: list[str] = []
    rest = list(argv)
    before = None
    while rest:
        word = rest.pop(0)
        if word == "--":
            before = len(operands)
            operands += rest
            break
        if word == "-" or not word.startswith("-"):
            operands.append(word)
            if stop:
                operands += rest
                break
        elif word.startswith("--"):
            _long(word[2:], rest, options, values)
        else:
            _cluster(word[1:], rest, options, values)
        if values.get("help") or values.get("usage") or values.get("version"):
            break
    return Parsed(
        values=values,
        operands=tuple(operands),
        before=len(operands) if before is None else before,
    )


def _long(word: str, rest: list[str], options: Sequence[Option], values: dict[str, object]) -> None:
    given, equals, value = word.partition("=")
    option = _find_long(given, options)
    if equals and not option.value:
        raise UsageError(f"option '--{option.long}' doesn't allow an argument", help=True)
    if not equals and option.value and not option.optional:
        if not rest:
            raise UsageError(f"option '--{option.long}' requires an argument", help=True)
        value = rest.pop(0)
    _store(option, value, values)


def _find_long(given: str, options: Sequence[Option]) -> Option:
    for option in options:
        if option.long == given:
            return option
    matching = [option for option in options if given and option.long.startswith(given)]
    if not matching:
        raise UsageError(f"unrecognized option '--{given}'", help=True)
    if len({option.long for option in matching}) > 1:
        names = " ".join(f"'--{option.long}'" for option in matching)
        raise UsageError(f"option '--{given}' is ambiguous; possibilities: {names}", help=True)
    return matching[0]


def _cluster(
    letters: str, rest: list[str], options: Sequence[Option], values: dict[str, object]
) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        option = next((one for one in options if one.short == letter), None)
        if option is None:
            raise UsageError(f"invalid option -- '{letter}'", help=True)
        value = ""
        if option.value:
            value, letters = letters, ""
            if not value and not option.optional:
                if not rest:
                    raise UsageError(f"option requires an argument -- '{letter}'", help=True)
                value = rest.pop(0)
        _store(option, value, values)


def _store(option: Option, value: str, values: dict[str, object]) -> None:
    known = values[option.long]
    if isinstance(known, list):
        known.append(value)
    else:
        values[option.long] = value if option.value else True


# ------------------------------------------------------------------------------------ the call


class OutputClosedError(Exception):
    """Whoever read our output has gone."""


class Output:
    """Text to a descriptor, whole and at once, however slowly it is read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def isatty(self) -> bool:
        """Is somebody looking?"""
        return os.isatty(self.fd)

    def line(self, text: str = "") -> None:
        """Write a line."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Write; raises OutputClosedError when the reader has gone, OSError for a full disk."""
        data = text.encode("utf-8", "surrogateescape")
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:  # a terminal that somebody made non-blocking
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                poll.poll()
            except BrokenPipeError as error:
                raise OutputClosedError from error


class Call(Record):
    """All that a tool may know about how it was called; it looks at no global instead.

    `name` is "" where the tool takes none. Paths in options are relative to `cwd`: use `file`.
    """

    tool: Tool
    program: str
    argv: tuple[str, ...]
    values: dict[str, object]
    operands: tuple[str, ...]
    name: str
    lxcpaths: tuple[str, ...]
    stdin: int
    stdout: int
    stderr: int
    cwd: str
    environ: Mapping[str, str]

    @property
    def lxcpath(self) -> str:
        """The directory of the containers: the first -P, or LXC's default."""
        return self.lxcpaths[0]

    @property
    def quiet(self) -> bool:
        """-q: no messages."""
        return self.flag("quiet")

    @property
    def out(self) -> Output:
        """Standard output."""
        return Output(self.stdout)

    @property
    def err(self) -> Output:
        """Standard error."""
        return Output(self.stderr)

    def flag(self, option: str) -> bool:
        """Was this flag (or an option with a value) given?"""
        value = self.values[option]
        return value is not None and value is not False and value != []

    def text(self, option: str) -> str | None:
        """The option's last value; None when it was not given."""
        value = self.values[option]
        return value if isinstance(value, str) else None

    def texts(self, option: str) -> tuple[str, ...]:
        """All values of an option that may come again."""
        value = self.values[option]
        return tuple(value) if isinstance(value, list) else ()

    def number(self, option: str) -> int | None:
        """The option's value as a whole number; UsageError when it is not one."""
        value = self.text(option)
        if value is None:
            return None
        try:
            return int(value)
        except ValueError:
            raise UsageError(f"--{option} wants a whole number, not '{value}'") from None

    def file(self, option: str) -> str | None:
        """The option's value as an absolute path."""
        value = self.text(option)
        return None if value is None else os.path.join(self.cwd, value)

    def complain(self, message: str) -> None:
        """A message for people, `TOOL: MESSAGE`, unless -q."""
        if not self.quiet:
            self.err.line(f"{self.program}: {message}")


def run(
    name: str,
    argv: Sequence[str],
    *,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    cwd: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Run the tool `name` of the table with these arguments (without argv[0]) and return its exit status."""
    tool = TOOLS[name]
    program = name if name.startswith("lxc-") else f"atoll {name}"
    environ = os.environ if environ is None else environ
    err = Output(stderr)
    container = None
    quiet = False
    try:
        try:
            parsed = parse(argv, _table(tool), stop=tool.stop or "POSIXLY_CORRECT" in environ)
            quiet = bool(parsed.values["quiet"])
            told = _tell(name, tool, parsed, Output(stdout), err)
            if told:
                return EXIT_OK
            call = _call(tool, program, argv, parsed, (stdin, stdout, stderr), cwd, environ)
            container = call.name or None
            _start_log(call)
            return _function(tool)(call)
        except UsageError as error:
            err.line(f"{program}: {error.message}")
            if error.help:
                err.write(help_text(name, tool))
            return tool.failure
        except (AtollError, OSError) as error:
            if not quiet:
                err.line(errors.describe(error, tool=program, name=container))
            return EXIT_SIGNAL + error.signal if isinstance(error, Interrupted) else tool.failure
    except OutputClosedError:
        return EXIT_SIGNAL + SIGPIPE
    except KeyboardInterrupt:
        return EXIT_SIGNAL + SIGINT


def _function(tool: Tool) -> Callable[[Call], int]:
    module, _, function = tool.run.partition(":")
    found: Callable[[Call], int] = getattr(__import__(module, fromlist=("",)), function)
    return found


def _table(tool: Tool) -> tuple[Option, ...]:
    own = parse_table(tool.options)
    taken = _taken(own)
    common = [one.replace(short="") if one.short in taken else one for one in parse_table(COMMON)]
    options = (*own, *common)
    if "h" in taken:
        return options
    return (*options, Option(long="help", short="h"))


def _taken(own: Sequence[Option]) -> set[str]:
    """Letters that a tool has for itself although they are a common option's: `lxc-config -l` lists."""
    return {option.short for option in own if option.short}


def _tell(name: str, tool: Tool, parsed: Parsed, out: Output, err: Output) -> bool:
    """Print what was asked about the tool itself; LXC's tools print their help to standard error."""
    about = err if name.startswith("lxc-") else out
    if parsed.values["help"]:
        about.write(help_text(name, tool))
    elif parsed.values["usage"]:
        about.line(usage_text(name, tool))
    elif parsed.values["version"]:
        out.line(version_text(name))
    else:
        return False
    return True


def _call(
    tool: Tool,
    program: str,
    argv: Sequence[str],
    parsed: Parsed,
    fds: tuple[int, int, int],
    cwd: str | None,
    environ: Mapping[str, str],
) -> Call:
    cwd = _directory() if cwd is None else cwd
    given = parsed.values["lxcpath"]
    paths = [os.path.join(cwd, path.rstrip("/") or "/") for path in _list(given)]
    if len(paths) > 1 and not tool.paths:
        raise UsageError("This command only accepts 1 -P,--lxcpath arguments")
    name, operands = _name(tool, parsed)
    return Call(
        tool=tool,
        program=program,
        argv=tuple(argv),
        values=parsed.values,
        operands=operands,
        name=name,
        lxcpaths=tuple(paths) or (default_lxcpath(environ),),
        stdin=fds[0],
        stdout=fds[1],
        stderr=fds[2],
        cwd=cwd,
        environ=environ,
    )


def _list(value: object) -> list[str]:
    return value if isinstance(value, list) else []


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed under us; only relative paths suffer
        return "/"


def _name(tool: Tool, parsed: Parsed) -> tuple[str, tuple[str, ...]]:
    """The container's name, from -n or the first operand, and the operands that are left."""
    name, operands = parsed.values["name"], parsed.operands
    if tool.name == NONE or (tool.stop and not name):
        return str(name or ""), operands
    if name is None and parsed.before > 0:
        name, operands = operands[0], operands[1:]
    if not name:
        if tool.name == REQUIRED:
            raise UsageError("No container name specified")
        return "", operands
    if "/" in str(name) or name in {".", ".."}:
        raise UsageError(f"'{name}' cannot be a container's name: it is a path")
    return str(name), operands


def default_lxcpath(environ: Mapping[str, str]) -> str:
    """lxc.lxcpath of the user's lxc.conf, else LXC's own default (reference, section 2.3)."""
    home = environ.get("HOME", "").rstrip("/")
    root = os.geteuid() == 0
    file = "/etc/lxc/lxc.conf" if root else f"{home}/.config/lxc/lxc.conf"
    file = environ.get("LXC_GLOBAL_CONF") or file
    if os.path.exists(file):  # rare, and the parser's import is not free
        from atoll.config.system import read_system

        value = read_system(file).get("lxc.lxcpath")
        if value:
            return value.rstrip("/") or "/"
    return "/var/lib/lxc" if root else f"{home}/.local/share/lxc"


def _start_log(call: Call) -> None:
    level, file = call.text("logpriority"), call.file("logfile")
    if call.text("logfile") == "none":
        file = None
    elif file is None and level is not None and call.name:
        # Only -l: the place where a user of LXC looks (reference, section 14).
        shared = call.lxcpath == "/var/lib/lxc" and os.geteuid() == 0
        directory = "/var/log/lxc" if shared else f"{call.lxcpath}/{call.name}"
        file = f"{directory}/{call.name}.log"
    try:
        number = log.ERROR if level is None else log.parse_level(level)
    except ValueError as error:
        raise UsageError(str(error)) from None
    log.configure(
        program=call.program,
        name=call.name or None,
        file=file,
        level=number,
        stderr_fd=-1 if call.quiet else call.stderr,
    )


# ---------------------------------------------------------------------------------------- texts


def version_text(name: str) -> str:
    """What --version prints: LXC's tools begin with LXC's version, because scripts compare it."""
    if name.startswith("lxc-"):
        return f"{LXC_VERSION} (atoll {__version__})"
    return f"atoll {__version__}"


def usage_text(name: str, tool: Tool) -> str:
    """The command line in one sentence."""
    program = name if name.startswith("lxc-") else f"atoll {name}"
    return f"Usage: {program} {tool.usage}"


def help_text(name: str, tool: Tool) -> str:
    """The whole help."""
    common = COMMON.strip("\n").replace("PATH...  ", "PATH     ")
    if tool.name == NONE:
        common = "\n".join(line for line in common.splitlines() if "--name=" not in line)
    for letter in _taken(parse_table(tool.options)):
        common = common.replace(f"  -{letter}, --", "      --")
    parts = [usage_text(name, tool), "", tool.summary[:1].upper() + tool.summary[1:] + ".", ""]
    own = "\n".join(line for line in tool.options.splitlines() if line).replace("...", "   ")
    if own:
        parts += ["Options:", own, ""]
    parts += ["Common options:", common, ""]
    if tool.examples:
        parts += ["Examples:", *(f"  {example}" for example in tool.examples), ""]
    return "\n".join(parts)


def overview() -> str:
    """What `atoll --help` prints: every tool with its summary."""
    own = [name for name in TOOLS if not name.startswith("lxc-")]
    lxc = [name for name in TOOLS if name.startswith("lxc-")]
    width = max(map(len, TOOLS))
    lines = ["Usage: atoll COMMAND [OPTION…]", ""]
    for title, names in (("Commands:", own), ("LXC's commands (lxc-start or start):", lxc)):
        lines += [title, *(f"  {name:<{width}}  {TOOLS[name].summary}" for name in names), ""]
    return "\n".join([*lines, "atoll COMMAND --help tells more.", ""])
