"""Answers to held-out instructions, measured against the reference and against the corpus.

ROUGE is rouge-score's and BLEU sacrebleu's, where they are installed (pip install rouge-score sacrebleu).
"""

import json
import re
import string
from collections import Counter
from typing import TYPE_CHECKING

from nanoprune.data.dataset import SPLITS, Dataset
from nanoprune.distributed import Ranks
from nanoprune.io.jsonl import read_jsonl
from nanoprune.nn.sampling import generate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model import Decoder

VERSION = 1  # of the answers and their measures: raise it when they change
SCORES = ("exact_match", "f1")  # measures that get intervals and differences
MEANS = (*SCORES, "rouge1", "rouge2", "rougeL", "repetition")
KINDS = ("task", "category", "difficulty")  # the fields of an instruction that group its answers


# ---------------------------------------------------------------- one answer
def normalized(text: str) -> str:
    """Lower case without punctuation, articles and extra space, as in SQuAD (arXiv:1606.05250)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, reference: str) -> float:
    return float(normalized(answer) == normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words (arXiv:1606.05250); 1 where both are empty."""
    a, b = normalized(answer).split(), normalized(reference).split()
    common = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * common / (len(a) + len(b))


def repetition(text: str) -> float:
    """Share of the text's sequences of four words that stood in it before; 0 where it is shorter."""
    words = re.findall(r"\w+", text.lower())
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:[.,]\d+)*", text)


def corpus_numbers(dataset: Dataset) -> set[str]:
    """Every number in the dataset's documents, or in its conversations."""
    if dataset.conversations:
        pairs = read_jsonl(dataset.folder / "pairs.jsonl", required=("messages",))
        texts = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    else:
        texts = [document["text"] for split in SPLITS for document in dataset.documents(split)]
    return {number for text in texts for number in numbers(text)}


def invented_numbers(text: str, prompt: str, known: set[str]) -> int:
    """The count of a text's numbers that stand neither in the prompt nor among the known ones."""
    prompted = set(numbers(prompt))
    return sum(number not in prompted and number not in known for number in numbers(text))


def overlap_scores(answer: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L (F) and sentence BLEU, of the libraries that are installed."""
    scores = {}
    try:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        scores |= {name: score.fmeasure for name, score in scorer.score(reference, answer).items()}
    except ImportError:
        pass
    try:
        scores["bleu"] = corpus_bleu([answer], [reference])
    except ImportError:
        pass
    return scores


def corpus_bleu(answers: list[str], references: list[str]) -> float:
    """BLEU (0 to 1) over all answers together, by sacrebleu; ImportError without it.

    Of n-grams up to the longest that the answers have, four words at most: otherwise short answers always
    give 0.
    """
    from sacrebleu import BLEU

    return BLEU(effective_order=True).corpus_score(answers, [references]).score / 100


# ---------------------------------------------------------------- all answers
def write_answers(
    model: "Decoder", tokenizer: "Tokenizer", instructions: list[dict], known: set[str], max_new_tokens: int,
    stop: set[int], ranks: Ranks, label: str,
) -> list[dict]:
    """A row per instruction {prompt, tokens, reference, task, ...}: the greedy answer and its measures.

    `known`: the corpus's numbers. Answers are written one at a time.
    """
    rows = [{} for _ in instructions]
    for i in ranks.shard(range(len(instructions)), label):
        instruction = instructions[i]
        prompt, reference = instruction["prompt"], instruction["reference"]
        try:
            [new_tokens] = generate(model, [instruction["tokens"]], max_new_tokens,
                                    stop=model.stop_tokens | stop)
        except ValueError:  # logits that are not finite say nothing
            new_tokens = []
        answer = tokenizer.decode(new_tokens).strip()
        rows[i] = {kind: instruction.get(kind) for kind in KINDS} | {
            "prompt": prompt, "reference": reference, "answer": answer,
            "exact_match": exact_match(answer, reference), "f1": token_f1(answer, reference),
            **overlap_scores(answer, reference), "repetition": repetition(answer),
            "numbers": len(numbers(answer)), "invented": invented_numbers(answer, prompt, known)}
    return ranks.gather(rows)
