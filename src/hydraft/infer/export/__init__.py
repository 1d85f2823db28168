"""``mode=export``: writes a model or an adapter to a new folder."""
