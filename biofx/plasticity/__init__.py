"""Plasticity: rules that change how, and which, synapses learn, and the scheduler of them."""

from biofx.plasticity.crystallize import Crystallize, crystallize
from biofx.plasticity.dale import DalesPrinciple, project_dale
from biofx.plasticity.fuzzy import FuzzyLearningRates, fuzzy_factors
from biofx.plasticity.manual import ManualPlasticity
from biofx.plasticity.rejuvenate import Rejuvenate, rejuvenate
from biofx.plasticity.rule import Context, Expression, Rule
from biofx.plasticity.schedule import Schedule
from biofx.plasticity.scheduler import GradScheduler
from biofx.plasticity.volume import VolumeDependentRates, volume_factors

__all__ = [
    "Context",
    "Crystallize",
    "DalesPrinciple",
    "Expression",
    "FuzzyLearningRates",
    "GradScheduler",
    "ManualPlasticity",
    "Rejuvenate",
    "Rule",
    "Schedule",
    "VolumeDependentRates",
    "crystallize",
    "fuzzy_factors",
    "project_dale",
    "rejuvenate",
    "volume_factors",
]
