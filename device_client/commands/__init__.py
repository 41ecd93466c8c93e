"""One file per subcommand of ``zo-device``, each with ``NAME``, ``HELP``, ``add_arguments`` and ``run``.

``run`` returns the one JSON object that ``--json`` prints; what people read goes through the console. A key
``exit_code`` in the object, where present, becomes the exit code. Modules here import torch only inside ``run``.
"""
