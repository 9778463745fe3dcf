"""The trials of tools/evidence: protocols, conditions, statistics, the page and its figures."""
