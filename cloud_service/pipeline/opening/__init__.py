"""What preparations and studies begin with: the input, its fingerprint, a memory plan, the texts."""
