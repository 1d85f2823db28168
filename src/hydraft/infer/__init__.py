"""Use of what was trained: find it, load it, then generate, chat, batch, serve or export; a module a mode."""
