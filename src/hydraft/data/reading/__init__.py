"""Reads the kinds of files and data sets that records come in, one row after another."""
