"""From rows of data to scored answers: datasets → templates → examples → scoring."""
