"""Files for other platforms, written from the same settings."""
