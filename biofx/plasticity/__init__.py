"""Plasticity: rules that change how, and which, synapses learn, and the scheduler of them."""

from biofx.plasticity.rules.crystallize import Crystallize, crystallize
from biofx.plasticity.rules.dale import DalesPrinciple, project_dale
from biofx.plasticity.rules.fuzzy import FuzzyLearningRates, fuzzy_factors
from biofx.plasticity.rules.rejuvenate import Rejuvenate, rejuvenate
from biofx.plasticity.rules.restore import Restore, restore
from biofx.plasticity.rules.rule import Context, Expression, Rule
from biofx.plasticity.rules.schedule import Schedule
from biofx.plasticity.rules.turnover import UnitTurnover
from biofx.plasticity.rules.volume import VolumeDependentRates, volume_factors
from biofx.plasticity.scheduler.manual import ManualPlasticity
from biofx.plasticity.scheduler.scheduler import GradScheduler

__all__ = [
    "Context",
    "Crystallize",
    "DalesPrinciple",
    "Expression",
    "FuzzyLearningRates",
    "GradScheduler",
    "ManualPlasticity",
    "Rejuvenate",
    "Restore",
    "Rule",
    "Schedule",
    "UnitTurnover",
    "VolumeDependentRates",
    "crystallize",
    "fuzzy_factors",
    "project_dale",
    "rejuvenate",
    "restore",
    "volume_factors",
]
