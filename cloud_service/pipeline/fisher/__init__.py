"""The Fisher diagonal: squared gradients summed shard by shard, and the mask of its largest values."""
