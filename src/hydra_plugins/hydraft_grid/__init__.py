"""Hydra finds sweepers here."""
