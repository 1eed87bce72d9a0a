"""A process of its own for a chat template, a stranger's program: bounded in time, memory and output.

    python template_process.py SECONDS BYTES CHARACTERS

Each line of its input is {template, date, variables}. Each is answered by a line: {text} or {error}.
`chat_format` starts it, and it imports nothing of the package.
"""

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import cache, partial

import jinja2.debug  # noqa: F401  Jinja would import it at the first error
from jinja2.ext import Extension
from jinja2.nodes import Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """The tag in which a template's author puts what the assistant says; it changes nothing of the text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@cache
def compiled(template: str, date: str) -> jinja2.Template:
    """The template with the filters, functions and tags of transformers; but today is always the same."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    today = datetime.fromisoformat(date)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": today.strftime}
    return environment.from_string(template)


def render(template: jinja2.Template, variables: dict, most: int) -> str:
    chunks, length = [], 0
    for chunk in template.generate(variables):
        chunks.append(chunk)
        length += len(chunk)
        if length > most:
            raise ValueError(f"it writes more than {most:,} characters")
    return "".join(chunks)


def main(seconds: int, memory: int, characters: int) -> None:
    with suppress(ImportError, ValueError, OSError):  # not every system has this bound
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    alarm = getattr(signal, "alarm", abs)  # ends the process, whatever it is doing; Windows has none
    for line in sys.stdin:
        alarm(seconds)
        try:
            request = json.loads(line)
            template = compiled(request["template"], request["date"])
            reply = {"text": render(template, request["variables"], characters)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        alarm(0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
