"""One training: optimizer, loop, range test, and what it leaves."""
