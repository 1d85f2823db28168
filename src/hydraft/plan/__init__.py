"""Estimates what a run costs, and checks whether it can start."""
