"""``mode=export``: writes a model or an adapter to a folder of its own."""
