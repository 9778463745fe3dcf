"""The arguments of the commands. Importing this loads no torch."""

import argparse
import difflib
import platform
import sys
import textwrap
from importlib import metadata
from typing import Any, NoReturn

from biofx import __version__
from biofx.cli.output import to_stdout
from biofx.config import Distribution
from biofx.errors import printable

_TRUST = (
    "MODEL is imported, so its code runs: use only files that you trust. Weights are loaded with "
    "weights_only=True, which runs no code."
)
_MODEL = """\
what MODEL may be:
  model.py            the file's one nn.Module: an instance, else a class that takes no arguments
  model.py:NAME       an instance, a class or a function that takes no arguments
  package.module:NAME the same in a module that can be imported from here
"""
_INSPECT = f"""\
{_MODEL}
examples:
  biofx inspect model.py
  biofx inspect model.py:Net --gamma 2 --nu 0.2 --input 1,3,224,224 --verify
  biofx inspect bert.py:make --input 2,128:int64 -o diff.html
  biofx inspect net.py --input batch.pt --format dot | dot -Tsvg > net.svg
"""
_EXPORT = f"""\
{_MODEL}
example:
  biofx export model.py:Net --weights checkpoint.pt -o net.pt
"""
_REPORT = """\
example:
  biofx report run.json -o run.html

in the training script:
  recorder = biofx.Recorder(scheduler, every=50)
  ...
  recorder.save("run.json")
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `arguments.run` is the command."""
    parser = _Parser(
        prog="biofx",
        description="Give any PyTorch model the plasticity of synapses: look at what changes "
        "(inspect), write a model that runs without biofx (export), look back on a run (report).",
        epilog=f"{_TRUST} Exit status: 0 done, 1 could not do it, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="show the versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    _add_inspect(commands)
    _add_export(commands)
    _add_report(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print all options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)} (help: {self.prog} --help)\n")

    def print_help(self, file: Any = None) -> None:
        """All of it; argparse would pass over what it cannot write."""
        with to_stdout():
            sys.stdout.write(self.format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Each command refuses what it does not know; argparse leaves that to the main parser."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            option = rest[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized argument {rest[0]}{hint}")
        return found, rest


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        "Transform a model and show what changed, node by node, and what did not and why.",
        _INSPECT,
    )
    parser.add_argument(
        "--format",
        choices=("rich", "text", "json", "html", "dot"),
        help="rich: colours on a terminal; text: none anywhere; json: everything; html: one page; "
        "dot: for Graphviz (default: rich; with -o, what the suffix of FILE tells: .txt, .json, "
        ".html or .dot)",
    )
    parser.add_argument("--full", action="store_true", help="show every node, fold nothing")
    parser.add_argument(
        "--width", type=_width, metavar="N", help="columns (default: the terminal's, else 80)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of stdout")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with the original on the --input, in both modes, gradients included",
    )
    _add_common(parser)
    parser.set_defaults(run=_inspect)


def _add_export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        "Write a model for inference to a file that runs where biofx is not installed.",
        _EXPORT,
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="state dict to load first: .safetensors, or what torch.save wrote; of a checkpoint, "
        "its one entry state_dict, model_state_dict or model",
    )
    parser.add_argument(
        "--format",
        choices=("torchscript", "pt2", "onnx"),
        help="(default: what the suffix of FILE tells: .pt, .pt2 or .onnx)",
    )
    parser.add_argument(
        "--no-fold",
        dest="fold",
        action="store_false",
        help="leave split layers as they are, rather than simplify what is linear",
    )
    _add_common(parser)
    parser.set_defaults(run=_export)


def _add_report(commands: Any) -> None:
    what = "Draw the history of a training run, which biofx.Recorder has saved, as one HTML page."
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help=what,
        description=what + " The page asks nothing of any server.",
        epilog=_REPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("history", metavar="RUN.json", help="what Recorder.save() wrote")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the page to write")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback when something goes wrong"
    )
    parser.set_defaults(run=_report)


def _command(commands: Any, name: str, what: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=textwrap.fill(what, 80) + "\n\n" + textwrap.fill(_TRUST, 80),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="FILE.py[:NAME] or package.module[:NAME]")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE|FILE.pt",
        help="an example input: [NAME=]1,3,224,224[:DTYPE], once for each argument, in order "
        "(integers are 0 or 1, floats normal); or one file of torch.save with a tensor, a tuple of "
        "arguments or a dict of keyword arguments. Default: the model's dummy_inputs, if any",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback when something goes wrong"
    )
    group = parser.add_argument_group("settings (any field of BioConfig)")
    add = group.add_argument
    add("--config", metavar="FILE.toml", help="settings from a file; the options below win")
    add(
        "--gamma", type=int, metavar="N", help="Γ, synapses per connection (weight_splitting_Gamma)"
    )
    add("--split", choices=("group", "expand"), help="how they are split (weight_splitting_mode)")
    add("--nu", type=float, metavar="X", help="ν, spread of the plasticity factors")
    add(
        "--distribution",
        choices=tuple(str(member) for member in Distribution),
        metavar="NAME",
        help=f"of the factors: {', '.join(Distribution)}",
    )
    add("--dale", action="store_true", default=None, help="obey Dale's principle")
    add("--crystallize-every", type=int, metavar="N", help="steps between; 0: never")
    add("--rejuvenate-every", type=int, metavar="N", help="steps between; 0: never")
    add(
        "--rejuvenate-law",
        choices=("uniform", "lognormal", "initial"),
        help="what new synapses are drawn from",
    )
    add(
        "--rejuvenate-choose",
        choices=("paper", "random", "weak"),
        help="which synapses are replaced",
    )
    add("--volume-every", type=int, metavar="N", help="volume-dependent rate; 0: never")
    add("--restore", type=float, metavar="K", help="restoring force to the initial weights")
    add("--unit-turnover-every", type=int, metavar="N", help="steps between; 0: never")
    add(
        "--unit-turnover-utility",
        choices=("contribution", "dormant"),
        help="which units are replaced: continual backprop's or ReDo's",
    )
    add("--paper", action="store_true", help="begin with the settings of the paper")
    add("--include", action="append", metavar="GLOB", help="layers that may carry plasticity")
    add("--exclude", action="append", metavar="GLOB", help="layers that must not")
    add(
        "--output-layers",
        action="append",
        metavar="GLOB",
        help="the output layers, which are not split (outputs); not needed with --input",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any other field, the value as in TOML: --set crystal_thresh=1e-4",
    )


def _width(text: str) -> int:
    try:
        width = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of columns") from None
    if not 40 <= width <= 10_000:
        raise argparse.ArgumentTypeError("must be between 40 and 10000 columns")
    return width


def _inspect(arguments: argparse.Namespace) -> int:
    from biofx.cli.inspect import inspect

    return inspect(arguments)


def _export(arguments: argparse.Namespace) -> int:
    from biofx.cli.export import export

    return export(arguments)


def _report(arguments: argparse.Namespace) -> int:
    from biofx.cli.report import report

    return report(arguments)


class _Version(argparse.Action):
    """Versions of biofx, torch and Python, without loading torch."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        try:
            torch = metadata.version("torch")
        except metadata.PackageNotFoundError:
            torch = "not installed"
        python = platform.python_version()
        with to_stdout():
            sys.stdout.write(f"biofx {__version__} (torch {torch}, Python {python})\n")
        parser.exit()
