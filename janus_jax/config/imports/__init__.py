"""Recipes of other trainers, read as data: what they say, what ours can say of it, and what they cannot have meant."""
