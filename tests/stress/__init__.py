"""Fault injection: the scripts are killed, starved of resources and given damaged files. ``make stress`` runs all."""
