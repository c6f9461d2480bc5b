"""Runs: the order of things, a run's folder and its lock, and its reader."""
