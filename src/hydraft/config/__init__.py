"""The settings: schema, bounds, choices, rules of refusal, help and the boundary to Hydra."""
