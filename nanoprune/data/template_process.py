"""A process of its own for a chat template, a stranger's program: bounded in time, memory and output.

The first line of its input is {template, date, seconds, bytes, characters}, each further one holds a
rendering's variables. Each of these is answered by a line: {text, spans} (of `{% generation %}`, in
characters) or {error}. `chat_format` starts it. It imports no other file of the package.
"""

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime

import jinja2.debug  # noqa: F401  Jinja would import it at the first error
from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """The tag in which a template's author puts what the assistant says."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller):
        text, start = caller(), self.environment.length
        self.environment.spans.append((start, start + len(text)))
        return text


def make_environment(day: datetime) -> ImmutableSandboxedEnvironment:
    """The filters, functions and tags that transformers gives to templates; but today is always `day`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": day.strftime}
    return environment


def render(template: jinja2.Template, variables: dict, most: int) -> dict:
    environment, chunks = template.environment, []
    environment.spans, environment.length = [], 0
    for chunk in template.generate(variables):
        chunks.append(chunk)
        environment.length += len(chunk)
        if environment.length > most:
            raise ValueError(f"it writes more than {most:,} characters")
    return {"text": "".join(chunks), "spans": environment.spans}


def main() -> None:
    settings, template = json.loads(sys.stdin.readline()), None
    with suppress(ImportError, ValueError, OSError):  # not every system has this bound
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings["bytes"], settings["bytes"]))
    alarm = getattr(signal, "alarm", abs)  # ends the process, whatever it is doing; Windows has none
    for line in sys.stdin:
        alarm(settings["seconds"])
        try:
            if not template:
                environment = make_environment(datetime.fromisoformat(settings["date"]))
                template = environment.from_string(settings["template"])
            reply = render(template, json.loads(line), settings["characters"])
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        alarm(0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
