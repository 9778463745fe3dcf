"""The vocabulary of the picture: markers, colours, settings in words."""

from biofx.config import BioConfig, Distribution
from biofx.synapses import Synapses

# What stands in the first column; a marker says the same as the colour.
MARKS = {
    "replaced": "~",
    "inserted": "+",
    "skipped": "!",
    "opaque": "#",
    "unchanged": "·",
    "fold": "⋮",
    "": " ",
}
STYLES = {
    "replaced": "cyan",
    "inserted": "green",
    "skipped": "yellow",
    "opaque": "magenta",
    "unchanged": "dim",
    "fold": "dim",
    "note": "italic dim",
    "": "",
}


def drawn(config: BioConfig) -> str:
    """How factors are drawn: ``lognormal ν=0.2``."""
    if config.fuzzy_lr_distribution is Distribution.BASELINE:
        return "baseline"
    return f"{config.fuzzy_lr_distribution} ν={config.fuzzy_learning_rate_factor_nu:g}"


def settings(synapses: Synapses) -> str:
    """The settings of a layer's synapses: ``lognormal ν=0.2 Γ=2 grouped Dale``."""
    config = synapses.config
    parts = [drawn(config)]
    if synapses.gamma > 1:
        parts.append(f"Γ={synapses.gamma} {'grouped' if synapses.split == 'group' else 'expanded'}")
    if config.apply_dales_principle:
        parts.append("Dale" if config.dale_axis == "pre" else f"Dale ({config.dale_axis})")
    return " ".join(parts)


def rules(config: BioConfig) -> str:
    """What the scheduler does by itself: ``crystallize every 1 · rejuvenate every 100``."""
    every = {
        "volume-dependent rate": config.volume_dependent_every,
        "crystallize": config.crystallize_every,
        "rejuvenate": config.rejuvenate_every,
    }
    steps = [f"{name} every {'step' if n == 1 else f'{n} steps'}" for name, n in every.items() if n]
    if config.apply_dales_principle:
        steps.append(f"Dale's principle on the {config.dale_axis}-synaptic side")
    return " · ".join(steps)
