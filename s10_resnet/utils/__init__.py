"""Utilities of the other packages: devices, files, signals, the console, the environment."""
