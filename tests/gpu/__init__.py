"""Tests that need one card."""
