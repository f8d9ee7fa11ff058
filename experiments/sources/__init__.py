"""Where shards come from: a module a source, each with `curate` (its settings are its arguments)."""
