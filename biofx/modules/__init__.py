"""Modules with a graph: the transformed model, its split layers, and the way back to plain ones."""
