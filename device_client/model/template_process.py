"""The process that renders a bundle's chat template: a foreign program, so it runs where it can be stopped.

    parent → here   {"template": …, "limits": {…}}, then {"variables": …} for each conversation
    here → parent   {"text": …}, {"refused": …} (the template refuses the messages) or {"failed": …}

Both directions are JSON lines; the end of standard input ends the process. The template runs in jinja2's immutable
sandbox, which keeps it from Python's objects, and under limits of the operating system, which keep it from the
machine's memory, processor and disk. Run by its path: imports the standard library and jinja2, nothing of this project.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refused(Exception):
    """The template called ``raise_exception``."""


def main() -> None:
    """Serve until standard input ends."""
    order = json.loads(sys.stdin.readline())
    limits = order["limits"]
    _limit(resource.RLIMIT_DATA, limits["memory_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    render: Callable[[Mapping[str, Any]], str] | None = None
    for line in sys.stdin:
        _limit_processor_time(limits["seconds"])
        try:
            render = render or _compiled(order["template"], limits["characters"])
            answer = {"text": render(json.loads(line)["variables"])}
        except Refused as error:
            answer = {"refused": str(error)[:500]}
        except MemoryError:
            answer = {"failed": f"it needs more than {limits['memory_bytes']} bytes of memory"}
        except RecursionError:
            answer = {"failed": "it calls itself without an end"}
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            answer = {"failed": str(error)[:500] or type(error).__name__}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _compiled(template: str, most_characters: int) -> Callable[[Mapping[str, Any]], str]:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    compiled = environment.from_string(template)

    def render(variables: Mapping[str, Any]) -> str:
        pieces, length = [], 0
        for piece in compiled.generate(**variables):
            length += len(piece)
            if length > most_characters:
                raise ValueError(f"it writes more than {most_characters} characters")
            pieces.append(piece)
        return "".join(pieces)

    return render


def _limit_processor_time(seconds: int) -> None:
    """Let the next conversation take so many seconds of this process's time; what came before does not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, resource.RLIM_INFINITY))


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, most))


def _refuse(reason: object) -> NoReturn:
    raise Refused(str(reason))


if __name__ == "__main__":
    main()
