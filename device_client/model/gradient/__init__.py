"""The exact gradient of the sensitive values, through packed weights, block by block."""
