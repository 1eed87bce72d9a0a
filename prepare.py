"""Articles to a dataset folder: cleaned, de-duplicated, split by date, tokenized, with question sets.

    python prepare.py data/raw/articles.jsonl --out data/bmw --tokenizer Qwen/Qwen3-0.6B-Base

Says what it dropped and why. Same input and options, same bytes.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from dataset import (
    SPLITS,
    end_token,
    load_tokenizer,
    prompt_of,
    read_jsonl,
    read_questions,
    split_tokens,
    tokenizer_hash,
    write_jsonl,
    write_tokens,
)
from files import TOKENIZER_FILES, copy_tokenizer, locate, make_folder, read_json, whole_folder, write_json
from questions import open_and_closed_book, training_pairs

# ---------------------------------------------------------------- boilerplate
# Every pattern covers a whole paragraph: nothing is cut because of a word that also stands in running text.

CONTACT_START = re.compile(
    r"((in case of|in the event of|for|(if|should) you have)( any| further| more| additional| media)*"
    r" (queries|questions|enquiries|inquiries|information|details)),? please contact:?.{0,200}"
    r"|(press|media) contacts?[.:]?|(BMW Group,? )?corporate communications", re.I)
CONTACT_LINE = re.compile(
    r".{0,160}(\b(tel|telephone|phone|mobile|cell|fax)\b[.:]? ?[+(]?\d|\be-?mail: ?\S+@|\+\d\d[- (]|\S+@\S+\.\w{2,3}\b)"
    r".{0,160}", re.I)
WHOLE = {
    "link": re.compile(
        r"((internet|media website|website|web|facebook|instagram|youtube|linkedin|x|tiktok|twitter|threads): ?\S+"
        r"|(https?://|www\.)\S+)( e-?mail: ?\S+)?", re.I),
    "company": re.compile(
        r"with its (three|four) brands,? BMW.*|in 20\d\d, the BMW Group (sold|delivered) .{0,40}million passenger.*"
        r"|the (economic )?success of the BMW Group has always been based on.*|the BMW Group", re.I | re.S),
    "consumption": re.compile(
        r"(official (data|information|figures) on|(power|fuel|energy|electric(ity)?) consumption and range data"
        r"|(all )?(the )?(stated |values |figures |data )+(of|on|for|regarding) (the )?(fuel|power|energy) consumption).*",
        re.I | re.S),
}
CONSUMPTION = re.compile(r"(?i)consumption|emissions?|combined|weighted|WLTP|NEDC|EnVKV|CO ?[2₂]|kWh/100 ?km|l/100 ?km|g/km|"
                         r"class(es)?|unloaded|discharged|battery|electric range|\bkm\b|[\d.,:;()/–-]+|\b[A-G]\b")


def boilerplate_kind(paragraph: str, in_contact: bool) -> str | None:
    """What kind of boilerplate a whole paragraph is, or None for text; `in_contact` says that a contact block is open."""
    if CONTACT_START.fullmatch(paragraph) or (paragraph[-1] != "." and CONTACT_LINE.fullmatch(paragraph)):
        return "contact"
    if in_contact and len(paragraph) <= 120 and paragraph[-1] not in ".!?”\":":
        return "contact"  # names and job titles between "please contact" and the next sentence
    for kind, pattern in WHOLE.items():
        if pattern.fullmatch(paragraph):
            return kind
    rest = CONSUMPTION.sub("", paragraph)
    if "km" in paragraph and "ombined" in paragraph and len(rest) < 0.4 * len(paragraph):
        return "consumption"
    return None


def clean(text: str, recurring: set[str], removed: Counter) -> str:
    """An article's text without boilerplate, one paragraph a block; what was removed is counted by kind."""
    kept, in_contact = [], False
    for paragraph in paragraphs_of(text):
        kind = boilerplate_kind(paragraph, in_contact)
        if kind is None and fingerprint(paragraph) in recurring:
            kind = "recurring"
        in_contact = kind == "contact"
        if kind:
            removed[kind] += 1
        else:
            kept.append(paragraph)
    return "\n\n".join(kept)


def paragraphs_of(text: str) -> list[str]:
    lines = (re.sub(r"\s+", " ", line.replace("\u200b", "")).strip() for line in text.split("\n"))
    return [line for line in lines if line]


def fingerprint(text: str) -> str:
    """A hash of the letters and digits alone: equal for texts that differ in spacing, case or punctuation."""
    return hashlib.sha256(re.sub(r"[\W_]+", "", text.lower()).encode()).hexdigest()


def recurring_paragraphs(articles: list[dict], shortest: int = 60) -> set[str]:
    """Fingerprints of paragraphs that stand in at least 1 % of the articles and in five of them.

    Short lines (names in lists of results) and those that announce what follows ("...:") recur as text does.
    """
    counts = Counter()
    for article in articles:
        counts.update({fingerprint(p) for p in paragraphs_of(article["text"]) if len(p) >= shortest and p[-1] != ":"})
    return {mark for mark, n in counts.items() if n >= max(5, 0.01 * len(articles))}


# ---------------------------------------------------------------- language and duplicates

STOP_WORDS = {
    "EN": "the and of to in is for with that on as are from this by at has was it its be will".split(),
    "DE": "der die das und ist mit von für auf den dem ein eine im zu nicht sich auch wird als".split(),
    "ES": "el la los las de que en y del con por para una un se es su al como más".split(),
    "FR": "le la les des du et est une dans pour que sur avec par au ce qui en un pas".split(),
    "IT": "il la di che e del della per con un una sono nel dei le al da si gli più".split(),
    "NL": "de het een en van in is op te dat met voor zijn niet aan er om ook als bij".split(),
}


def language_of(text: str) -> str | None:
    """The language whose stop words stand in a text most often; None where there are too few to tell."""
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    found = {language: sum(words[word] for word in stop) for language, stop in STOP_WORDS.items()}
    best = max(found, key=found.get)
    return best if found[best] >= 5 else None


def near_duplicates(texts: list[str], threshold: float = 0.8) -> list[tuple[int, int]]:
    """Pairs (i < j) whose sets of five-word shingles have a Jaccard similarity of at least `threshold`.

    MinHash (Broder 1997): 64 permutations in 16 bands of 4; documents that share a band are compared exactly.
    """
    rng = np.random.default_rng(1)
    a, b = rng.integers(1, 2**61, (2, 64, 1), dtype=np.uint64) | np.uint64(1)
    shingles, bands = [], []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        grams = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        hashes = {int.from_bytes(hashlib.blake2b(g.encode(), digest_size=8).digest(), "little") for g in grams}
        shingles.append(hashes)
        minima = (a * np.fromiter(hashes, np.uint64) + b).min(1)  # wraps modulo 2^64
        bands.append([hash(band.tobytes()) for band in minima.reshape(16, 4)])
    pairs = set()
    for column in np.array(bands, dtype=np.int64).reshape(-1, 16).T:
        order = np.argsort(column, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(column[order])) + 1):
            pairs |= {(int(i), int(j)) for n, i in enumerate(run) for j in run[n + 1 :]}
    def jaccard(i: int, j: int) -> float:
        return len(shingles[i] & shingles[j]) / len(shingles[i] | shingles[j])
    return sorted((i, j) for i, j in pairs if jaccard(i, j) >= threshold)


# ---------------------------------------------------------------- articles to documents


def read_articles(path: Path, since: date | None, until: date | None) -> list[dict]:
    """Articles in order of date and id; ValueError names the line whose date or text is unusable."""
    articles = read_jsonl(path, ("id", "title", "date", "text"))
    for number, article in enumerate(articles, start=1):
        try:
            article["day"] = date.fromisoformat(article["date"])
            if article["day"].isoformat() != article["date"]:  # days are compared as they are written
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"{path}, line {number}: date {article['date']!r} is not of the form 2025-12-05") from None
        if not all(isinstance(article[key], str) for key in ("id", "title", "text")):
            raise ValueError(f"{path}, line {number}: id, title and text must be texts")
    if not articles:
        raise ValueError(f"{path} holds no articles; collect some: python scrape.py --out {path}")
    chosen = [a for a in articles if (since is None or a["day"] >= since) and (until is None or a["day"] <= until)]
    if not chosen:
        days = [a["day"] for a in articles]
        raise ValueError(f"{path} has no articles of that period; its {len(articles)} are of {min(days)} to {max(days)}")
    return sorted(chosen, key=lambda a: (a["day"], a["id"]))


def select(articles: list[dict], args: argparse.Namespace) -> tuple[list[dict], dict[str, list[dict]], Counter]:
    """(documents, articles dropped by reason, paragraphs removed by kind), before the split."""
    dropped: dict[str, list[dict]] = {}
    def drop(reason: str, article: dict) -> None:
        dropped.setdefault(reason, []).append(article)

    ours = []
    for article in articles:
        suffix = re.fullmatch(r".*\d([A-Z]{2})(_[A-Z]{2})?", article["id"])
        if suffix and suffix[1] != args.language:
            drop("other language (id)", article)
        elif suffix and suffix[2]:
            drop("other market (id)", article)
        elif language_of(article["text"]) not in (None, args.language):
            drop("other language (words)", article)
        else:
            ours.append(article)
    removed, recurring = Counter(), set() if args.keep_boilerplate else recurring_paragraphs(ours)
    documents, seen, ids = [], set(), set()
    for article in tqdm(ours, desc="cleaning", disable=None):
        whole = "\n\n".join(paragraphs_of(article["text"]))
        text = whole if args.keep_boilerplate else clean(article["text"], recurring, removed)
        mark = fingerprint(text)
        if article["id"] in ids:
            drop("same id", article)
        elif len(text) < args.min_chars:
            drop(f"shorter than {args.min_chars} characters", article)
        elif mark in seen:
            drop("same text", article)
        else:
            seen.add(mark)
            ids.add(article["id"])
            title = re.sub(r"\s+", " ", article["title"]).strip()
            documents.append({"id": article["id"], "title": title, "date": article["date"], "category": article.get("category"),
                              "url": article.get("url"), "text": f"{title}\n\n{text}"})
    if not documents:
        reasons = ", ".join(f"{len(found)} {reason}" for reason, found in dropped.items())
        raise ValueError(f"nothing is left of {len(articles)} articles ({reasons}); see --language and --min-chars")
    return documents, dropped, removed


def split_by_date(documents: list[dict], shares: tuple[float, ...]) -> dict[str, list[dict]]:
    """Train, val and test in order of date; a day is never divided, so no dates overlap."""
    days = [d["date"] for d in documents]
    bounds = [0]
    for share in np.cumsum(shares)[:-1]:
        at = min(max(1, round(share * len(documents))), len(documents) - 1)
        while at < len(documents) and days[at] == days[at - 1]:
            at += 1
        bounds.append(at)
    splits = {name: documents[i:j] for name, (i, j) in zip(SPLITS, pairwise([*bounds, len(documents)]), strict=True)}
    if empty := [name for name, found in splits.items() if not found]:
        raise ValueError(f"{len(documents)} documents of {len(set(days))} days are too few for three splits: "
                         f"{', '.join(empty)} would be empty; collect more articles")
    return splits


def drop_near_duplicates(splits: dict[str, list[dict]], dropped: dict[str, list[dict]]) -> None:
    """Within a split the later one goes; across the split the one on the training side, so that nothing tested was seen."""
    where = [(name, d) for name, found in splits.items() for d in found]
    gone = set()
    for i, j in near_duplicates([d["text"] for _, d in where]):
        if i in gone or j in gone:
            continue
        same = where[i][0] == where[j][0]
        loser = j if same else i
        gone.add(loser)
        dropped.setdefault("near-duplicate" if same else "near-duplicate across the split", []).append(where[loser][1])
    lost = {id(where[i][1]) for i in gone}
    for name in splits:
        splits[name] = [d for d in splits[name] if id(d) not in lost]
        if not splits[name]:
            raise ValueError(f"without near-duplicates nothing is left of {name}; collect more articles")


# ---------------------------------------------------------------- tokens


def train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> None:
    """A byte-level BPE with Qwen's special tokens, trained on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(specials) + len(alphabet):
        raise ValueError(f"--train-tokenizer {vocab_size} is too small: the bytes and special tokens alone are "
                         f"{len(specials) + len(alphabet)}")
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": specials[0],
                                                  "pad_token": specials[0]})


def write_split(folder: Path, name: str, documents: list[dict], tokenizer: Tokenizer, end: int, begins: bool) -> dict:
    """One split's JSONL and token file; its entry of meta.json.

    `bytes` counts what the predictions of a document stand for: all of its text, less its first token where the
    tokenizer adds no begin token, as nothing predicts that one.
    """
    tokens, nbytes = [], []
    for start in tqdm(range(0, len(documents), 256), desc=f"tokenizing {name}", disable=None):
        part = documents[start : start + 256]
        for document, encoded in zip(part, tokenizer.encode_batch([d["text"] for d in part]), strict=True):
            given = 0 if begins else encoded.offsets[0][1]
            tokens.append([*encoded.ids, end])
            nbytes.append(len(document["text"][given:].encode()))
    write_jsonl(folder / f"{name}.jsonl", documents)
    write_tokens(folder / f"{name}.safetensors", tokens, tokenizer.get_vocab_size(), nbytes=nbytes)
    return {"documents": len(documents), "tokens": sum(map(len, tokens)), "bytes": sum(nbytes),
            "first": documents[0]["date"], "last": documents[-1]["date"]}


def write_pairs(folder: Path, pairs: list[dict], tokenizer: Tokenizer, end: int) -> None:
    """Training pairs as text and as tokens; only the answer and the end are learned."""
    tokens, learned = [], []
    for pair in pairs:
        question, answer = (message["content"] for message in pair["messages"])
        whole, prompt = split_tokens(tokenizer, prompt_of(question), " " + answer)
        tokens.append([*whole, end])
        learned.append([0] * prompt + [1] * (len(whole) + 1 - prompt))
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_tokens(folder / "pairs.safetensors", tokens, tokenizer.get_vocab_size(), learned=learned)


def read_pairs(path: Path) -> list[dict]:
    """Training examples in chat form: a user's turn and an assistant's."""
    pairs = read_jsonl(path, ("messages",))
    for number, pair in enumerate(pairs, start=1):
        turns = pair["messages"] if isinstance(pair["messages"], list) else []
        texts = [m.get("content") for m in turns if isinstance(m, dict)]
        roles = [m.get("role") for m in turns if isinstance(m, dict)]
        if roles != ["user", "assistant"] or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{path}, line {number}: messages must be a turn of the user and one of the assistant, with text")
    return pairs


# ---------------------------------------------------------------- the whole


def prepare(args: argparse.Namespace, folder: Path) -> dict:
    """Make the dataset in an empty folder; its meta.json's content."""
    articles = read_articles(args.articles, args.since, args.until)
    pairs = read_pairs(args.pairs) if args.pairs else []
    sets = {path.stem: read_questions(path) for path in args.questions}
    if args.tokenizer:
        copy_tokenizer(locate(args.tokenizer, files=TOKENIZER_FILES), folder)
    documents, dropped, removed = select(articles, args)
    splits = split_by_date(documents, args.split)
    drop_near_duplicates(splits, dropped)
    print_report(len(articles), splits, dropped, removed)

    if args.train_tokenizer:
        train_tokenizer([d["text"] for d in splits["train"]], args.train_tokenizer, folder)
    tokenizer = load_tokenizer(folder)
    end, begins = end_token(tokenizer, folder), bool(tokenizer.encode("").ids)
    entries = {name: write_split(folder, name, found, tokenizer, end, begins) for name, found in splits.items()}

    if args.generated:
        pairs = training_pairs(splits["train"], args.seed) + pairs
        sets = {name: found for name, found in open_and_closed_book(splits, args.seed).items() if found} | sets
    write_pairs(folder, pairs, tokenizer, end)
    for name, questions in sets.items():
        write_jsonl(make_folder(folder / "qa") / f"{name}.jsonl", questions)
    meta = {
        "source": {"name": args.articles.name, "articles": len(articles),
                   "sha256": hashlib.sha256(args.articles.read_bytes()).hexdigest()},
        "tokenizer": Path(args.tokenizer).name if args.tokenizer else f"trained, {args.train_tokenizer}",
        "tokenizer_hash": tokenizer_hash(folder),
        "vocab_size": max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        "end_token": end, "begins": begins,
        "dropped": {reason: len(found) for reason, found in dropped.items()},
        "paragraphs_removed": dict(sorted(removed.items())),
        "splits": entries, "pairs": len(pairs), "questions": {name: len(found) for name, found in sets.items()},
        "options": {key: str(value) if isinstance(value, date) else value for key, value in vars(args).items()
                    if key in ("since", "until", "language", "min_chars", "split", "keep_boilerplate", "seed")},
    }
    write_json(folder / "meta.json", meta)
    return meta


def print_report(total: int, splits: dict, dropped: dict[str, list[dict]], removed: Counter) -> None:
    print(f"{total} articles, {sum(map(len, splits.values()))} kept")
    for reason, found in sorted(dropped.items(), key=lambda item: -len(item[1])):
        print(f"  {len(found):6d}  {reason:34s} such as {found[0]['id']}: {found[0]['title'][:60]}")
    print(f"{sum(removed.values())} paragraphs of boilerplate removed: "
          + (", ".join(f"{n} {kind}" for kind, n in removed.most_common()) or "none"))
    for name, found in splits.items():
        print(f"  {name:5s}  {len(found):6d} documents  {found[0]['date']} to {found[-1]['date']}")


def foreign_files(folder: Path) -> list[str]:
    """What stands in a folder besides a dataset that prepare.py wrote: the user's own files, above all question sets."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    ours = {"meta.json", "qa", *TOKENIZER_FILES}
    ours |= {f"{name}.{kind}" for name in (*SPLITS, "pairs") for kind in ("jsonl", "safetensors")}
    meta = folder / "meta.json"
    questions = {f"{name}.jsonl" for name in read_json(meta).get("questions", {})} if meta.is_file() else set()
    found = [path.name for path in folder.iterdir() if path.name not in ours]
    return sorted(found + [f"qa/{path.name}" for path in (folder / "qa").glob("*") if path.name not in questions])


def parse_date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date of the form 2025-09-01") from None


def parse_shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r}: three shares above 0 that add up to 1 are needed, such as 0.8,0.1,0.1")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path, help="JSONL with id, title, date and text, as scrape.py writes it")
    parser.add_argument("--out", type=Path, required=True, help="the dataset folder; made anew if it is there")
    parser.add_argument("--tokenizer", help="hub name or folder of the model whose tokenizer is used")
    parser.add_argument("--train-tokenizer", type=int, metavar="SIZE", help="train a byte-level BPE of this size instead")
    parser.add_argument("--since", type=parse_date, help="first day kept")
    parser.add_argument("--until", type=parse_date, help="last day kept")
    parser.add_argument("--language", default="EN", choices=sorted(STOP_WORDS), help="language kept")
    parser.add_argument("--min-chars", type=int, default=450, help="shorter texts are stubs")
    parser.add_argument("--split", type=parse_shares, default=(0.8, 0.1, 0.1), help="shares of train, val and test, by date")
    parser.add_argument("--keep-boilerplate", action="store_true", help="remove no paragraphs")
    parser.add_argument("--pairs", type=Path, help="JSONL of further training pairs (messages)")
    parser.add_argument("--questions", type=Path, nargs="+", default=[], help="JSONL files of multiple-choice questions to add")
    parser.add_argument("--no-generated", dest="generated", action="store_false", help="make no pairs and questions by rule")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of questions and distractors")
    args = parser.parse_args()
    if bool(args.tokenizer) == bool(args.train_tokenizer):
        raise ValueError("give --tokenizer NAME (the model's to be trained) or --train-tokenizer SIZE")
    names = [path.stem for path in args.questions] + ["closed_book", "open_book"] * args.generated
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two question sets would be named {twice[0]}; rename a file (closed_book and open_book are the names "
                         "of the generated ones, which --no-generated leaves out)")
    if args.min_chars < 0:
        raise ValueError(f"--min-chars must be 0 or more, given {args.min_chars}")
    if strange := foreign_files(args.out):
        raise ValueError(f"{args.out} holds what prepare.py did not write ({', '.join(strange[:3])}) and would be lost; "
                         "move it elsewhere or choose another --out")
    with whole_folder(args.out) as beside:
        meta = prepare(args, beside)
    tokens = sum(entry["tokens"] for entry in meta["splits"].values())
    print(f"wrote {args.out}: {tokens:,} tokens, {meta['pairs']} training pairs, questions: "
          + (", ".join(f"{n} {name}" for name, n in meta["questions"].items()) or "none"))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nprepare.py: stopped", file=sys.stderr)
        sys.exit(130)
