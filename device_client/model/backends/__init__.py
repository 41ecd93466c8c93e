"""How a packed weight is kept and computed with: two protocols, and one folder for each kind of machine.

``weight`` and ``backend`` are the protocols, ``reference`` their plain-torch definition, ``native`` is compiled for
this CPU, ``triton`` for CUDA; ``choose`` takes the fastest that works here. A folder's ``__init__`` says in numbers,
without torch, what its backend will keep: ``planned_bytes`` asks it.
"""
