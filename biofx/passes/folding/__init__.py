"""The rules of the fold pass: what each operation makes of a value that repeats.

A rule gets the folding and a node, and gives the node's value as a `Rep`: the operation on small
values (`Folding.build`) and the layout of its result. It raises `Unfoldable` where the operation
does not keep the repetition.
"""

from biofx.passes.folding import elementwise, norms, shapes, spatial, weights

_TABLES = (elementwise, norms, shapes, spatial, weights)

RULES_OF_FUNCTIONS = {key: rule for table in _TABLES for key, rule in table.FUNCTIONS.items()}
RULES_OF_METHODS = {key: rule for table in _TABLES for key, rule in table.METHODS.items()}
RULES_OF_MODULES = {key: rule for table in _TABLES for key, rule in table.MODULES.items()}
