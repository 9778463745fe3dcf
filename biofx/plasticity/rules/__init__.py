"""The plasticity rules, one file each: a pure formula, then a small frozen class."""
