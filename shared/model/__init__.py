"""What a device makes of a bundle before it computes: tokenizer, chat template, the names and shapes of the weights."""
