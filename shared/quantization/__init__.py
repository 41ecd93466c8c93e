"""The codec of the dense weights: packed codes, codebooks and group scales, decoded by one formula."""
