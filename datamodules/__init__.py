"""Data: webdataset shards with a manifest, a sample order that resumes exactly, one DataModule."""
