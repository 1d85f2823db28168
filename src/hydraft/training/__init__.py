"""One rank: objectives, trainer, callbacks."""
