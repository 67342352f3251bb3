"""What keeps a run going."""
