"""Dashboards: what a run reports and to whom. No torch."""
