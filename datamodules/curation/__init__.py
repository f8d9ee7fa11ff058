"""Sources of clips: raw data -> arrays and captions. The verb `curate` encodes them."""
