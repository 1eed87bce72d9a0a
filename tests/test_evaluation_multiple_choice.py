"""evaluation/multiple_choice.py: the log-likelihoods of transformers, and of each choice by itself."""

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from small import SHAPE

from model import Decoder
from nanoprune.data.chat_format import question_prompt
from nanoprune.data.dataset import Dataset
from nanoprune.evaluation.multiple_choice import Choice, encode_questions, loglikelihoods, score_questions
from nanoprune.nn.model_config import ModelConfig


def test_answers_are_those_of_transformers(world):
    """Each choice by itself, one at a time; accuracy by the sum and by the sum per character."""
    theirs, data = transformers.AutoModelForCausalLM.from_pretrained(world.model).eval(), Dataset(world.data)
    for name, questions in data.questions().items():
        encoded, _ = encode_questions(data.tokenizer, questions, 128)
        answers = score_questions(Decoder.from_pretrained(world.model).eval(), encoded)
        for question, found in zip(questions, answers, strict=True):
            scores = []
            prompt = question_prompt(question["question"], question.get("context"))
            for choice in question["choices"]:
                ids = torch.tensor([data.tokenizer.encode(f"{prompt} {choice}").ids])
                n = len(data.tokenizer.encode(prompt).ids)
                with torch.no_grad():
                    logs = theirs(ids).logits[0].log_softmax(-1)
                scores.append(sum(float(logs[t - 1, ids[0, t]]) for t in range(n, ids.shape[1])))
            right = question["answer"]
            assert found["loglikelihoods"] == pytest.approx(scores, rel=1e-4), name
            assert found["answer"] == right
            assert found["correct"] == (int(np.argmax(scores)) == right)
            per_character = [s / len(c) for s, c in zip(scores, question["choices"], strict=True)]
            assert found["correct_norm"] == (int(np.argmax(per_character)) == right)


@pytest.mark.parametrize("window", [None, 6])
def test_trees_give_the_plain_loglikelihoods(world, window):
    """Of questions with common contexts, in trees of any size: each row by itself."""
    shape = dict(use_sliding_window=True, sliding_window=6, max_window_layers=1) if window else {}
    torch.manual_seed(3)
    shape |= {"vocab_size": 90, "initializer_range": 0.3}
    model = Decoder(ModelConfig.from_dict(SHAPE | shape)).eval()
    rng = np.random.default_rng(0)
    contexts = [rng.integers(0, 90, n).tolist() for n in (30, 30, 1)]
    groups = []
    for i in range(9):
        prompt = contexts[i % 3] + rng.integers(0, 90, i % 4).tolist()
        groups.append([Choice(prompt + rng.integers(0, 5, n).tolist(), len(prompt)) for n in (1, 2, 2, 5)])
    groups.append([groups[0][0], groups[0][0]])  # the same twice
    expected = []
    for rows in groups:
        one = []
        for tokens, n in rows:
            with torch.no_grad():
                logs = model(torch.tensor([tokens]))[0].log_softmax(-1)
            one.append(sum(float(logs[t - 1, tokens[t]]) for t in range(n, len(tokens))))
        expected.append(one)
    for most in (1, 40, 10**6):
        for found, one in zip(loglikelihoods(model, groups, most), expected, strict=True):
            assert found == pytest.approx(one, rel=1e-5)


def test_an_answer_that_comes_to_no_token_is_named():
    vocabulary = {c: i for i, c in enumerate("Question:Awr? \nhtab")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    question = {"question": "what?", "choices": ["that", "é"], "answer": 0}
    with pytest.raises(ValueError, match="the choice 'é' comes to no token of its own; reword it"):
        encode_questions(tokenizer, [question], 100)
