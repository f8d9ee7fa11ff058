"""Networks in folders: found, loaded, saved, imported and exported."""
