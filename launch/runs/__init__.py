"""Runs: from the command's words to all hosts, and how far they are."""
