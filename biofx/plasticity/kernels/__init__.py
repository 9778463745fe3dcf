"""How the functions of rules are evaluated: as they are written, or compiled."""
