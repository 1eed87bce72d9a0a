"""Questions written by a language model behind any OpenAI-compatible endpoint, each checked against its
source.

The key is read from the environment (OPENAI_API_KEY), the prompt from qa/prompt.txt. Nothing is sent unless
`--questions-from` is given.
"""

import os
import random
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import requests

from nanoprune.io.files import parse_json
from nanoprune.progress import progress

PROMPT = Path(__file__).parents[2] / "qa" / "prompt.txt"
MOST_DOCUMENTS, PER_DOCUMENT = 100, 3  # on which questions are written, and questions asked for on each
TIMEOUT = (10, 300)  # seconds to connect, and to wait for an answer
MAX_BYTES = 2**20
MAX_FAILURES = 3  # requests without an answer in a row, after which the endpoint is taken for gone


def write_questions(
    url: str, model: str, documents: list[dict], seed: int
) -> tuple[list[dict], Counter]:
    """(four-choice questions on these documents, the number of rejected answers by reason).

    ValueError if the endpoint never answers. If it stops answering, the questions until then are returned.
    """
    rng, questions, rejected, failures = random.Random(seed), [], Counter(), 0
    template = PROMPT.read_text(encoding="utf-8")
    for document in progress(documents, "writing questions"):
        prompt = template.replace("{count}", str(PER_DOCUMENT)).replace("{date}", document["date"])
        try:
            proposals = parse(request(url, model, prompt.replace("{text}", document["text"])))
            failures = 0
        except (requests.RequestException, ValueError) as error:
            rejected["no answer that can be read"] += 1
            if isinstance(error, requests.RequestException):
                failures += 1
            if failures < min(MAX_FAILURES, len(documents)):
                continue
            if not questions:
                raise ValueError(f"--questions-from {url} does not answer ({error}); check the address, "
                                 "OPENAI_API_KEY and --questions-model") from error
            rejected["the endpoint was gone"] += 1
            break
        for proposal in proposals:
            if reason := rejection(proposal, document["text"]):
                rejected[reason] += 1
                continue
            answer, choices = rng.randrange(4), list(proposal["wrong"])
            choices.insert(answer, proposal["answer"])
            questions.append({"question": proposal["question"], "choices": choices, "answer": answer,
                              "category": "written", "source": document["id"]})
    return questions, rejected


def request(url: str, model: str, prompt: str) -> str:
    """The model's answer; requests.RequestException or ValueError if there is none."""
    session, key = requests.Session(), os.environ.get("OPENAI_API_KEY")
    # A proxy cannot reach this machine.
    session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")
    with session.post(
        f"{url.rstrip('/')}/chat/completions", timeout=TIMEOUT, stream=True,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        json={"model": model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]},
    ) as response:
        response.raise_for_status()
        body = b""
        for chunk in response.iter_content(2**14):
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError("the answer is too large")
    try:
        return str(parse_json(body, "the answer")["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a chat completion: {error}") from error


def parse(text: str) -> list[dict]:
    """The proposed questions in a model's answer, which may wrap its JSON in words or a code fence."""
    content = text[text.find("{") : text.rfind("}") + 1].encode()
    proposals = parse_json(content, "the model's answer").get("questions")
    if not isinstance(proposals, list):
        raise ValueError("no list of questions")
    return [proposal for proposal in proposals if isinstance(proposal, dict)]


def rejection(proposal: dict, source: str) -> str | None:
    """The reason why a proposed question is unusable; None if it is usable."""
    question, answer, wrong = proposal.get("question"), proposal.get("answer"), proposal.get("wrong")
    texts = [question, answer, *(wrong if isinstance(wrong, list) else [])]
    are_texts = all(isinstance(text, str) and text.strip() for text in texts)
    if not are_texts or not len(texts) == len(set(map(normalized, texts))) == 5:
        return "not a question with one answer and three wrong ones"
    if not stands_in(answer, source):
        return "the answer is not in the source"
    if any(stands_in(text, source) for text in wrong):
        return "a wrong answer is in the source"
    return "the answer is in the question" if stands_in(answer, question) else None


def stands_in(part: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(normalized(part))}(?!\w)", normalized(text)) is not None


def normalized(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .")
