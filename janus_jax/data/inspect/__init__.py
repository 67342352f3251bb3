"""`janus data inspect`: what training will see, as text, as a page and as numbers."""
