"""What both commands do first: load the model, transform it."""

import argparse
import copy
import sys
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

from biofx.cli.errors import CommandError, one_line
from biofx.cli.inputs import inputs_of
from biofx.cli.load import load_model
from biofx.cli.progress import Steps
from biofx.cli.settings import config_of
from biofx.errors import printable

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def prepare(
    arguments: argparse.Namespace, step: Steps
) -> tuple[nn.Module, nn.Module, Inputs | None]:
    """(the model, the transformed model, its example inputs).

    Raises:
        CommandError: the model cannot be loaded, or fails on the inputs.
    """
    config = config_of(arguments)
    inputs = inputs_of(arguments.input)
    step(f"loading {arguments.model}")
    model = load_model(arguments.model)
    if inputs is not None:
        step("running it on the example inputs")
        try:
            _run(model, inputs)
        except Exception as error:
            given = " ".join(f"--input {text}" for text in arguments.input)
            message = f"{type(model).__name__} fails on {given}: {one_line(error)}"
            raise CommandError(message) from error
    step(f"transforming {type(model).__name__}")
    from biofx.transform import transform

    with warnings.catch_warnings():
        warnings.showwarning = partial(_show, arguments.command)
        bio = transform(model, config, example_inputs=inputs)
    return model, bio, inputs


def _show(command: str, message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as the user's, not as the code's that gives it."""
    text = printable(" ".join(str(message).split()))
    sys.stderr.write(f"biofx {command}: warning: {text}\n")


def _run(model: nn.Module, inputs: Inputs) -> None:
    """Run a model once, in evaluation mode; its buffers stay as they were."""
    from biofx.capture import clone

    args, kwargs = copy.deepcopy(inputs)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.no_grad():
        try:
            clone(model).eval()(*args, **kwargs)
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
