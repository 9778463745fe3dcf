"""The API of the `bio_transformations` package, over biofx."""

from biofx.compat.converted import Converted
from biofx.compat.converter import BioConverter
from biofx.compat.module import DEFAULT_BIO_CONFIG, BioModule
from biofx.config import BioConfig, Distribution

__all__ = [
    "DEFAULT_BIO_CONFIG",
    "BioConfig",
    "BioConverter",
    "BioModule",
    "Converted",
    "Distribution",
]
