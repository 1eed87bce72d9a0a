"""Questions written by a language model behind any OpenAI-compatible endpoint, each checked against its source.

The key is read from the environment (OPENAI_API_KEY), the prompt from qa/prompt.txt. Nothing here runs unless it is asked for.
"""

import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm


PROMPT = Path(__file__).parents[2] / "qa" / "prompt.txt"
TIMEOUT = (10, 300)  # seconds to connect, and for an answer to be written
MAX_BYTES = 2**20
MAX_FAILURES = 3  # requests in a row without an answer: the endpoint is gone


def write_questions(url: str, model: str, documents: list[dict], seed: int, count: int = 3) -> tuple[list[dict], Counter]:
    """(four-choice questions on these documents, what was refused and why).

    ValueError where the endpoint does not answer at all; what it answered before is returned, with the rest as refused.
    """
    rng, found, refused, failures = random.Random(seed), [], Counter(), 0
    prompt = PROMPT.read_text(encoding="utf-8")
    for document in tqdm(documents, desc="asking", disable=None):
        filled = prompt.replace("{count}", str(count)).replace("{date}", document["date"]).replace("{text}", document["text"])
        try:
            proposed = parse(request(url, model, filled))
            failures = 0
        except (requests.RequestException, ValueError) as error:
            refused["no answer that can be read"] += 1
            failures += isinstance(error, requests.RequestException)
            if failures == MAX_FAILURES and not found:
                raise ValueError(f"--questions-from {url} does not answer ({error}); check the address, OPENAI_API_KEY and "
                                 "--questions-model") from error
            if failures == MAX_FAILURES:
                refused["the endpoint was gone"] += 1
                break
            continue
        for line in proposed:
            if reason := refuse(line, document["text"]):
                refused[reason] += 1
                continue
            answer = rng.randrange(4)
            choices = [*line["wrong"][:answer], line["answer"], *line["wrong"][answer:]]
            found.append({"question": line["question"], "choices": choices, "answer": answer, "category": "written",
                          "source": document["id"]})
    return found, refused


def request(url: str, model: str, prompt: str) -> str:
    """What the model writes; requests.RequestException or ValueError where that cannot be had."""
    session, key = requests.Session(), os.environ.get("OPENAI_API_KEY")
    session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")  # no proxy reaches this machine
    with session.post(f"{url.rstrip('/')}/chat/completions", timeout=TIMEOUT, stream=True,
                      headers={"Authorization": f"Bearer {key}"} if key else {},
                      json={"model": model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}) as response:
        response.raise_for_status()
        body = b""
        for chunk in response.iter_content(2**14):
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError("the answer is too large")
    try:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a chat completion: {error}") from error


def parse(text: str) -> list[dict]:
    """The proposed questions in a model's text, which may wrap its JSON in words or a code fence."""
    start, stop = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : stop + 1]).get("questions")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, list):
        raise ValueError("no list of questions")
    return [line for line in found if isinstance(line, dict)]


def refuse(line: dict, source: str) -> str | None:
    """Why a proposed question is not taken; None where it is."""
    question, answer, wrong = line.get("question"), line.get("answer"), line.get("wrong")
    texts = [question, answer, *(wrong if isinstance(wrong, list) else [])]
    if len(texts) != 5 or not all(isinstance(text, str) and text.strip() for text in texts) or len(set(map(_normalized, texts))) != 5:
        return "not a question with one answer and three wrong ones"
    if not stands_in(answer, source):
        return "the answer is not in the source"
    if any(stands_in(text, source) for text in wrong):
        return "a wrong answer is in the source"
    return "the answer is in the question" if stands_in(answer, question) else None


def stands_in(part: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(_normalized(part))}(?!\w)", _normalized(text)) is not None


def _normalized(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .")
