"""What both commands do first: load the model, transform it."""

import argparse
import sys
import warnings
from functools import partial
from typing import Any

from torch import nn

from biofx.cli.errors import one_line
from biofx.cli.inputs import check_names, inputs_of
from biofx.cli.load import load_model
from biofx.cli.progress import Steps
from biofx.cli.settings import config_of
from biofx.errors import ModelError, printable


def prepare(arguments: argparse.Namespace, step: Steps) -> tuple[nn.Module, nn.Module, Any]:
    """(the model, the transformed model, its example inputs or None).

    Raises:
        CommandError: the model cannot be loaded, or an example cannot be read.
        ModelError: it cannot be transformed, or fails on the inputs.
    """
    config = config_of(arguments)
    inputs = inputs_of(arguments.input)
    step(f"loading {arguments.model}")
    model = load_model(arguments.model)
    check_names(model, arguments.input)
    own = _dummy_inputs(model) if inputs is None else None
    step(f"transforming {type(model).__name__}")
    from biofx.transform import transform

    with warnings.catch_warnings():
        warnings.showwarning = partial(_show, arguments.command)
        if own is not None:
            try:
                return model, transform(model, config, example_inputs=own), own
            except ModelError as error:
                if "example_inputs" not in str(error):
                    raise
                text = f"its own dummy_inputs do not do ({one_line(error)}); give --input"
                _show(arguments.command, text)
        return model, transform(model, config, example_inputs=inputs), inputs


def _dummy_inputs(model: nn.Module) -> Any:
    """The example inputs that a model brings with it, as models of Transformers do."""
    try:
        found = getattr(model, "dummy_inputs", None)
    except Exception:
        return None
    return found if isinstance(found, dict | tuple) and found else None


def _show(command: str, message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as the user's, not as the code's that gives it."""
    text = printable(" ".join(str(message).split()))
    sys.stderr.write(f"biofx {command}: warning: {text}\n")
