"""Sources of clips: raw material -> arrays and captions. The verb `curate` encodes them."""
