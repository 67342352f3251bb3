"""The hosts, over ssh, and what is brought to them."""
