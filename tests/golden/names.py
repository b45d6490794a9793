"""What flags, choices, columns and keys were called before and are called now. Extend the tables on a rename."""

from __future__ import annotations

import re

# Flags and their values, old -> new. The scenarios use the old ones; a revision whose --help has a new one gets that.
WORDS = {
    "--limit": "--max-train-samples",
    "--cutout": "--cutout-size",
    "--finder-steps": "--lr-finder-steps",
    "--anneal": "--anneal-strategy",
    "--optimizer-betas": "--betas",
    "--runs": "--num-seeds",
    "six": "flip_shift",
}

# Columns of CSV files and keys of JSON files, old -> new.
KEYS = {
    "learning_rate": "lr",
    "accuracy_none": "accuracy",
    "accuracy_flip": "accuracy_tta_flip",
    "accuracy_six": "accuracy_tta_flip_shift",
}
EVALUATION = re.compile(r"^(test|val|validation|evaluation)_")  # all the same figure: eval_
CLOCK = re.compile(r"seconds|per_second")  # never the same twice


def spelled(word: str, help_text: str) -> str:
    """Returns a flag or value as a revision spells it.

    Args:
        word: The old spelling.
        help_text: What the revision's script prints for ``--help``.
    """
    new = WORDS.get(word)
    return new if new and re.search(rf"(?<![\w-]){re.escape(new)}(?![\w-])", help_text) else word


def canonical(key: str) -> str:
    """Returns the one name of a column or key, whichever revision wrote it."""
    return EVALUATION.sub("eval_", KEYS.get(key, key))
