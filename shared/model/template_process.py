"""The process that renders a bundle's chat template: a foreign program, so it runs where it can be stopped.

    parent → here   {"template": …, "limits": {…}}, then {"variables": …} for each conversation
    here → parent   {"text": …}, {"refused": …} (the template refuses the messages) or {"failed": …}

Both directions are JSON lines; the end of standard input ends the process. The template is rendered as transformers
renders it, in jinja2's immutable sandbox, which keeps it from Python's objects, and under limits of the operating
system, which keep it from the machine's memory, processor and disk. Costs what importing transformers costs (half a
second of processor time, 60 MB; no torch). Run by its path: imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    """Serve until standard input ends."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy comes with transformers, and reserves memory for each thread
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    order = json.loads(sys.stdin.readline())
    limits = order["limits"]
    _limit(resource.RLIMIT_DATA, limits["memory_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    for line in sys.stdin:
        _limit_processor_time(limits["seconds"])
        answer: dict[str, Any]
        try:
            variables = json.loads(line)["variables"]
            messages = variables.pop("messages", [])
            (text,), _ = render_jinja_template([messages], chat_template=order["template"], **variables)
            answer = {"text": text}
            if len(text) > limits["characters"]:
                answer = {"failed": f"it writes more than {limits['characters']} characters"}
        except MemoryError:
            answer = {"failed": f"it needs more than {limits['memory_bytes']} bytes of memory"}
        except RecursionError:
            answer = {"failed": "it calls itself without an end"}
        except TemplateError as error:
            # raise_exception raises the class itself; what jinja2 finds wrong with a template is a class below it.
            kind = "refused" if type(error) is TemplateError else "failed"
            answer = {kind: str(error)[:500] or type(error).__name__}
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            answer = {"failed": str(error)[:500] or type(error).__name__}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _limit_processor_time(seconds: int) -> None:
    """Let the next conversation take so many seconds of this process's time; what came before does not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, resource.RLIM_INFINITY))


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main()
