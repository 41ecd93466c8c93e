"""The sequences that gradients are taken of: documents of a text, or rows of a task, as tokens."""
