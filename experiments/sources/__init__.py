"""Where shards come from: a module a source; its `curate` takes the recipe's settings."""
