"""How a packed weight is computed with: one protocol, and one folder or module per kind of machine.

``backend`` is the protocol, ``reference`` its plain-torch definition, ``native`` compiled for this CPU, ``triton`` for
CUDA; ``choose`` takes the fastest that works here.
"""
