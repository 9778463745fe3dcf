"""`main`: parse, run the command, turn whatever happens into an exit status and one line."""

import contextlib
import io
import sys
import traceback
from collections.abc import Sequence

from biofx.cli.errors import CommandError, UsageError, one_line
from biofx.cli.output import drop_stdout
from biofx.cli.parser import make_parser
from biofx.errors import BiofxError, printable

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit status; 0 is done, 1 could not do it (one line on stderr says why), 2 wrong usage,
        130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")  # the help holds Greek letters
    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has said what it has to say
        return stop.code if isinstance(stop.code, int) else FAILED
    except BrokenPipeError:
        return _without_reader()
    except CommandError as error:
        return _say(parser.prog, str(error), FAILED)
    if getattr(arguments, "run", None) is None:
        commands = "name a command: inspect, export or report (help: biofx --help)"
        return _say(parser.prog, commands, WRONG_USAGE)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _without_reader()
    except (CommandError, UsageError, BiofxError) as error:
        if arguments.debug:
            traceback.print_exc()
        usage = isinstance(error, UsageError)
        program = f"{parser.prog} {arguments.command}"
        return _say(program, str(error), WRONG_USAGE if usage else FAILED)
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        hint = "" if arguments.debug else " (--debug shows where)"
        return _say(parser.prog, f"unexpected {one_line(error)}{hint}", FAILED)
    return status


def _say(program: str, message: str, status: int) -> int:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{program}: error: {printable(message)}\n")
    return status


def _without_reader() -> int:
    """Whoever read the output has seen enough (`| head`): not an error."""
    drop_stdout()
    return DONE
