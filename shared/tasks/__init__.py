"""From rows of data to prompts and answers in tokens: datasets → templates → rendering → examples."""
