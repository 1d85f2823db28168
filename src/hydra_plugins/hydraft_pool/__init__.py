"""Hydra finds launchers here."""
