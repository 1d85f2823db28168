"""Everything a person may type: the schema, its choices and bounds, the rules that refuse a run, the boundary to Hydra."""
