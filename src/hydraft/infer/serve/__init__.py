"""mode=serve: an OpenAI-compatible server."""
