"""Data: webdataset shards with a manifest, an order that resumes exactly, one DataModule."""
