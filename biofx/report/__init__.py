"""A run's history, and the page that shows it. Reading and drawing one needs no torch."""
