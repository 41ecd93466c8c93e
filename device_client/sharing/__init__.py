"""Fine-tunes as small signed things: what is shared, by whose key, and put onto the same bundle elsewhere."""
