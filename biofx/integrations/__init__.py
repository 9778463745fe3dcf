"""Plasticity in other libraries' training loops and loggers; each module is imported when used."""
