"""What the cloud and the device agree on, byte for byte: errors, bundle, codec, mask, perturbations, messages."""
