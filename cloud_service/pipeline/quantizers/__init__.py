"""Quantises the dense part: block by block, three quantisers with one call, and error compensation.

A quantiser takes a float32 weight and its importance and returns a ``QuantizedTensor``. Importance is the Fisher
diagonal, 0 at masked weights: those have no influence on the result.
"""
