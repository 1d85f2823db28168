"""Ranks on other machines, over ssh."""
