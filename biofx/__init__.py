"""biofx: a torch.fx compiler pass that gives any PyTorch model the plasticity of synapses."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from biofx.garbage import uncollected as _uncollected

if TYPE_CHECKING:
    from biofx.compat import DEFAULT_BIO_CONFIG, BioConverter, BioModule
    from biofx.config import BioConfig, Distribution
    from biofx.diff import GraphDiff, diff
    from biofx.errors import (
        BiofxError,
        CheckpointError,
        ConfigError,
        ExportError,
        ModelError,
        PlasticityError,
        ReportError,
        VerificationError,
    )
    from biofx.export import export
    from biofx.modules.plain import plain
    from biofx.plasticity import GradScheduler
    from biofx.report.recorder import Recorder
    from biofx.synapses import Synapses, register
    from biofx.transform import Transformation, info, transform
    from biofx.verify import verify

__version__ = "0.2.0"

# public name -> module that defines it; loaded at first use, so that `biofx --help` needs no torch
_HOMES = {
    "BioConfig": "biofx.config",
    "Distribution": "biofx.config",
    "BiofxError": "biofx.errors",
    "CheckpointError": "biofx.errors",
    "ConfigError": "biofx.errors",
    "ExportError": "biofx.errors",
    "ModelError": "biofx.errors",
    "PlasticityError": "biofx.errors",
    "ReportError": "biofx.errors",
    "VerificationError": "biofx.errors",
    "BioConverter": "biofx.compat",
    "BioModule": "biofx.compat",
    "DEFAULT_BIO_CONFIG": "biofx.compat",
    "GradScheduler": "biofx.plasticity",
    "GraphDiff": "biofx.diff",
    "Recorder": "biofx.report.recorder",
    "Synapses": "biofx.synapses",
    "Transformation": "biofx.transform",
    "diff": "biofx.diff",
    "export": "biofx.export",
    "info": "biofx.transform",
    "plain": "biofx.modules.plain",
    "register": "biofx.synapses",
    "transform": "biofx.transform",
    "verify": "biofx.verify",
}

__all__ = [
    "DEFAULT_BIO_CONFIG",
    "BioConfig",
    "BioConverter",
    "BioModule",
    "BiofxError",
    "CheckpointError",
    "ConfigError",
    "Distribution",
    "ExportError",
    "GradScheduler",
    "GraphDiff",
    "ModelError",
    "PlasticityError",
    "Recorder",
    "ReportError",
    "Synapses",
    "Transformation",
    "VerificationError",
    "diff",
    "export",
    "info",
    "plain",
    "register",
    "transform",
    "verify",
]


# packages of public names, loaded at first use too: `biofx.plasticity.Restore`
_PACKAGES = ("plasticity", "synapses")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        with _uncollected():
            value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"biofx.{name}")
    raise AttributeError(f"module 'biofx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, *_PACKAGES))


class _Face(ModuleType):
    """Keeps the import system from hiding a public function by the submodule of its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
