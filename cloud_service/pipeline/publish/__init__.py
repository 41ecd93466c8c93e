"""What goes into a bundle beside its tensors."""
