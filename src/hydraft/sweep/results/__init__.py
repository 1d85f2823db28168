"""The results of a sweep: ledger, tables, charts, the page."""
