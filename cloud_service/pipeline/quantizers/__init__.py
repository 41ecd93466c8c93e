"""Three quantisers with one call: float32 weight and importance in, ``QuantizedTensor`` out.

Importance is the Fisher diagonal, 0 at masked weights: those have no influence on the result.
"""
