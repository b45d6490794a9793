"""Figures, the page and the model card of a run."""
