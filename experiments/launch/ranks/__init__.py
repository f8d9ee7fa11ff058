"""The processes of one run: which rank this is, and how ranks are started and ended."""
