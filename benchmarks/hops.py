"""The same numbers on every hop: a model's folder in nanoprune, transformers and llama.cpp.

    python -m benchmarks.hops models/base models/reduced models/merged --data data/smollm2
    python -m benchmarks.hops runs/full runs/reduced --data data/smollm2 --types f16,q8_0,q5_1,q4_0

Each hop scores the beginnings of test documents, and writes a few greedy tokens after the first ones of each.
It is compared with nanoprune in fp32, transformers' four bits (NF4) with nanoprune's. The last table sets
what bits cost beside what a block costs: its differences are all to the first folder.

A hop whose packages are missing is left out, and said. docs/serving.md names the packages. Writes hops.csv
(numbers by document, no text) and hops.md.
"""

import importlib.util
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from socket import socket
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.common import ROOT, machine, make_parser, report, select
from benchmarks.tables import markdown
from model import Decoder
from nanoprune import command_line
from nanoprune.data.dataset import Dataset
from nanoprune.io.files import make_folder, write_csv
from nanoprune.io.hub import locate
from nanoprune.nn.peft import is_adapter
from nanoprune.nn.sampling import generate
from nanoprune.progress import progress
from nanoprune.statistics import Ratio

TYPES = ("f16", "q8_0", "q5_1", "q4_1", "q4_0")  # of a GGUF file's matrices
# Largest difference by document, in nats per token, to nanoprune's number of the same weights. Types that are
# missing here change the weights too much to be the same number.
TOLERANCES = {("transformers", "fp32"): 1e-4, ("transformers", "nf4"): 1e-4, ("llama.cpp", "f16"): 1e-2,
              ("llama.cpp", "q8_0"): 1e-1}
FORCED = 1e4  # added to a logit, it makes the token the likeliest of all
STARTING = 120.0  # seconds that a server may take to answer for the first time


class Document(NamedTuple):
    tokens: list[int]
    scored: list[int]  # places of the tokens whose log-probabilities are taken
    prompt: str  # its beginning, which every hop goes on writing
    prompt_tokens: list[int]


def read_documents(data: Path, count: int, length: int, prompt: int) -> list[Document]:
    """Beginnings of test documents, evenly spaced, without end-of-text tokens.

    Tokens that are part of a character are not scored: llama.cpp's server says nothing of them.
    """
    dataset = Dataset(data)
    split, end = dataset.split("test"), dataset.meta["end_token"]
    long = np.flatnonzero(split.prediction_counts > prompt)
    chosen = long[np.unique(np.linspace(0, len(long) - 1, min(count, len(long))).round().astype(int))]
    if not len(chosen):
        raise ValueError(f"no test document of {data} has more than {prompt + 1} tokens; lower --prompt")
    documents = []
    for i in chosen:
        tokens = split[i].tokens[:length].tolist()
        tokens = tokens[:-1] if tokens[-1] == end else tokens
        text = dataset.tokenizer.decode(tokens[:prompt])
        scored = [i for i in range(1, len(tokens)) if "\ufffd" not in dataset.tokenizer.decode([tokens[i]])]
        documents.append(Document(tokens, scored, text, dataset.tokenizer.encode(text).ids))
    return documents


# ---------------------------------------------------------------- in this process


class TorchEngine:
    """A model in this process; `logits` maps ids (1, time) to logits, `go_on` also takes a number of tokens.
    """

    def __init__(self, logits: Callable, go_on: Callable):
        self.logits, self.go_on = logits, go_on

    @torch.no_grad()
    def score(self, tokens: list[int], places: Sequence[int]) -> np.ndarray:
        """Log-probabilities of the tokens at these places."""
        ids, places = torch.tensor([tokens]), torch.tensor(places)
        log_probabilities = self.logits(ids)[0, places - 1].float().log_softmax(-1)
        return log_probabilities.gather(1, ids[0, places, None])[:, 0].double().numpy()

    def write(self, document: Document, count: int) -> tuple[list[int], np.ndarray]:
        """Greedy tokens after the document's prompt, and their log-probabilities."""
        tokens = self.go_on(torch.tensor([document.prompt_tokens]), count)
        whole = document.prompt_tokens + tokens
        return tokens, self.score(whole, range(len(document.prompt_tokens), len(whole)))

    def close(self) -> None:
        pass


def open_nanoprune(folder: Path) -> TorchEngine:
    model = Decoder.from_pretrained(folder).eval()
    return TorchEngine(model, lambda ids, count: generate(model, ids.tolist(), count)[0])


def open_transformers(folder: Path) -> TorchEngine:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    rounded = getattr(config, "quantization_config", None)
    if rounded:
        rounded["bnb_4bit_compute_dtype"] = "float32"  # the folder names its base's type
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, config=config, dtype=torch.float32)
    # Otherwise bitsandbytes multiplies in bf16 on processors with units for it, whatever the type.
    model.train(rounded is not None)
    for parameter in model.parameters():  # those beside the four bits keep the folder's type
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    model.generation_config.eos_token_id = None  # an end-of-text token ends nothing, as with the other hops

    def go_on(ids: torch.Tensor, count: int) -> list[int]:
        mask = torch.ones_like(ids)
        whole = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
        return whole[0, ids.shape[1]:].tolist()

    return TorchEngine(lambda ids: model(ids).logits, go_on)


# ---------------------------------------------------------------- behind a server


def post(url: str, body: dict, headers: dict | None = None, timeout: float = 300.0) -> dict:
    """The JSON answer to a request with a JSON body."""
    request = urllib.request.Request(url, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"} | (headers or {}))
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


class LlamaServer:
    """llama.cpp's server with a GGUF file, as the package xllamacpp brings it."""

    def __init__(self, file: Path, context: int = 1024, slots: int = 1):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel = context * slots, slots
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        parameters.hostnames, parameters.port = ["127.0.0.1"], 0  # a free one
        parameters.verbosity = -1
        self.server = xllamacpp.Server(parameters)
        self.url = self.server.listening_address

    def complete(self, prompt: str | list[int], count: int, **options) -> list[dict]:
        """`id` and `logprob` of each token that is written after a prompt, a text or its tokens."""
        answer = post(f"{self.url}/v1/completions", {
            "prompt": prompt, "max_tokens": count, "temperature": 0, "logprobs": 1} | options)
        return answer["choices"][0]["logprobs"]["content"]

    def score(self, tokens: list[int], places: Sequence[int]) -> np.ndarray:
        """Log-probabilities of the tokens at these places.

        The server echoes no prompt. It is made to write each token in turn by a bias on its logit, and gives
        the log-probability without the bias.
        """
        forced = [self.complete(tokens[:i], 1, logit_bias={str(tokens[i]): FORCED})[0]
                  for i in places]
        if [token["id"] for token in forced] != [tokens[i] for i in places]:
            raise ValueError("the server wrote other tokens than those it was made to write; take the "
                             "release of xllamacpp that docs/serving.md names")
        return np.array([token["logprob"] for token in forced])

    def write(self, document: Document, count: int) -> tuple[list[int], np.ndarray]:
        """Greedy tokens after the prompt, which the server tokenizes itself, and their log-probabilities."""
        written = self.complete(document.prompt, count, ignore_eos=True)
        return [token["id"] for token in written], np.array([token["logprob"] for token in written])

    def close(self) -> None:
        self.server = None


class TransformersServer:
    """`transformers serve` with one model; it gives text alone, no log-probabilities."""

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self.tokenizer, self.url = tokenizer, f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu",
             "--dtype", "float32", "--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for(f"{self.url}/health", self.process)

    def score(self, tokens: list[int], places: Sequence[int]) -> None:
        return None

    def write(self, document: Document, count: int) -> tuple[list[int], None]:
        """Tokens of the text that is written greedily after the document's prompt."""
        answer = post(f"{self.url}/v1/completions", {
            "prompt": document.prompt, "max_tokens": count, "temperature": 0})
        text = document.prompt + answer["choices"][0]["text"]
        return self.tokenizer.encode(text).ids[len(document.prompt_tokens):], None

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()


def free_port() -> int:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen) -> None:
    """Return once a server answers; ValueError with the end of its messages if it has ended."""
    limit = time.monotonic() + STARTING
    while time.monotonic() < limit and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.05)
    process.kill()
    messages = process.stderr.read()
    raise ValueError(f"{' '.join(map(str, process.args))} does not answer at {url}:\n{messages[-2000:]}")


# ---------------------------------------------------------------- GGUF


def convert(folder: Path, file: Path, kind: str) -> Path:
    """Write a folder's model as a GGUF file by llama.cpp's converter, in f16 or q8_0."""
    if file.is_file():
        file.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "convert_hf_to_gguf", str(folder), "--outtype", kind, "--outfile", str(file)],
        capture_output=True, text=True)
    if done.returncode == 0:
        return file
    if "pre-tokenizer was not recognized" in done.stderr:
        raise ValueError(
            f"llama.cpp's converter refuses the tokenizer of {folder}: it knows tokenizers by a hash, and "
            "this one's is not on its list. Serve the folder with transformers or vLLM, or begin with a base "
            "whose tokenizer is on it")
    raise ValueError(f"llama.cpp's converter refuses {folder}:\n{done.stderr[-2000:]}")


def requantise(source: Path, file: Path, kind: str) -> Path:
    """Write a GGUF file with the matrices of its blocks in another type and its embedding in q8_0."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(source)
    writer = GGUFWriter(file, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=of)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind.upper()}"])
    for tensor in reader.tensors:
        wanted = tensor.tensor_type
        if len(tensor.shape) > 1:
            wanted = GGMLQuantizationType[kind.upper() if tensor.name.startswith("blk.") else "Q8_0"]
        values = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_gguf(folder: Path, work: Path, name: str, kind: str) -> Path:
    """The GGUF file of a folder's model."""
    file = make_folder(work) / f"{name}.{kind}.gguf"
    if kind in ("f16", "q8_0"):
        return convert(folder, file, kind)
    return requantise(work / f"{name}.f16.gguf", file, kind)


# ---------------------------------------------------------------- one hop


class Result(NamedTuple):
    """What an engine gives for a document; nan or None where it gives no log-probabilities."""

    nll: float
    written: list[int]
    log_probabilities: np.ndarray | None  # of `written`


def measure(engine, documents: list[Document], count: int) -> list[Result]:
    """An engine's results by document."""
    results = []
    for document in progress(documents, "documents"):
        scores = engine.score(document.tokens, document.scored)
        written, log_probabilities = engine.write(document, count)
        nll = math.nan if scores is None else -float(scores.sum())
        results.append(Result(nll, written, log_probabilities))
    return results


def compare(
    results: list[Result], references: list[Result], documents: list[Document], tokenizer: Tokenizer
) -> list[dict]:
    """A row for each document."""
    rows = []
    for number, (ours, theirs, document) in enumerate(zip(results, references, documents, strict=True)):
        expected, gap = theirs.written, math.nan
        if ours.log_probabilities is None:  # the tokens of a text, which need not be those that were written
            text = document.prompt + tokenizer.decode(expected)
            expected = tokenizer.encode(text).ids[len(document.prompt_tokens):]
        same = equal_beginning(ours.written, expected)
        if ours.log_probabilities is not None:
            gaps = np.abs(ours.log_probabilities[:same] - theirs.log_probabilities[:same])
            gap = float(gaps.max(initial=0))
        tokens = len(document.scored)
        rows.append({"document": number, "tokens": tokens, "nll": ours.nll,
                     "difference": (ours.nll - theirs.nll) / tokens, "written": len(expected),
                     "same": same, "logprob_difference": gap})
    return rows


def equal_beginning(ours: list[int], theirs: list[int]) -> int:
    """The number of tokens before the first difference."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


# ---------------------------------------------------------------- all hops


def missing(*packages: str) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


class Hop(NamedTuple):
    name: str
    weights: str  # their type
    stored: Path  # the file or folder with the weights
    open: Callable


NEEDS = {"transformers": ("transformers",), "nf4": ("transformers", "accelerate", "bitsandbytes"),
         "transformers serve": ("transformers", "fastapi", "uvicorn", "openai"),
         "llama.cpp": ("xllamacpp", "convert_hf_to_gguf")}  # packages of each hop


def installed(hop: str) -> bool:
    """True if a hop's packages are here; what is missing is said."""
    if packages := missing(*NEEDS[hop]):
        print(f"{hop} left out, not installed: {', '.join(packages)}", file=sys.stderr)
    return not packages


def hops(
    name: str, folder: Path, work: Path, wanted: list[str], types: list[str], tokenizer: Tokenizer
) -> Iterator[Hop]:
    """The wanted hops of a model, nanoprune's own before those compared with it."""
    yield Hop("nanoprune", "fp32", folder, lambda: open_nanoprune(folder))
    if "transformers" in wanted:
        yield Hop("transformers", "fp32", folder, lambda: open_transformers(folder))
    if "transformers serve" in wanted:
        yield Hop("transformers serve", "fp32", folder, lambda: TransformersServer(folder, tokenizer))
    if "nf4" in wanted:
        rounded = work / f"{name}.nf4"
        subprocess.run([sys.executable, "-m", "nanoprune", "quantise", str(folder), "--out", str(rounded)],
                       check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        yield Hop("nanoprune", "nf4", rounded, lambda: open_nanoprune(rounded))
        yield Hop("transformers", "nf4", rounded, lambda: open_transformers(rounded))
    for kind in types if "llama.cpp" in wanted else ():
        try:
            file = write_gguf(folder, work, name, kind)
        except ValueError as refusal:  # the other hops are measured all the same
            print(refusal, file=sys.stderr)
            return
        yield Hop("llama.cpp", kind, file, lambda file=file: LlamaServer(file))


def megabytes(stored: Path) -> float:
    files = [stored] if stored.is_file() else stored.glob("*.safetensors")
    return sum(file.stat().st_size for file in files) / 1e6


def groups(rows: list[dict]) -> Iterator[tuple[str, str, str, list[dict]]]:
    """Model, hop, type of the weights, and their rows."""
    for key in dict.fromkeys((row["model"], row["hop"], row["weights"]) for row in rows):
        yield *key, select(rows, **dict(zip(("model", "hop", "weights"), key, strict=True)))


def mean_nll(rows: list[dict]) -> float:
    """Nats per token."""
    return sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)


def same_numbers(rows: list[dict]) -> list[str]:
    """A table of every hop beside nanoprune."""
    lines = []
    for model, hop, weights, here in groups(rows):
        nll, gap = mean_nll(here), max(abs(row["difference"]) for row in here)
        written = max(row["logprob_difference"] for row in here)
        allowed, within = TOLERANCES.get((hop, weights)), ""
        if allowed is not None:
            within = f"{allowed:.0e}" if gap <= allowed else f"**over {allowed:.0e}**"
        numbers = ["–"] * 3 if math.isnan(nll) else [f"{nll:.4f}", f"{gap:.1e}", f"{written:.1e}"]
        same = f"{sum(row['same'] for row in here)} of {sum(row['written'] for row in here)}"
        size = f"{here[0]['megabytes']:,.0f}"
        lines.append((model, hop, weights, size, *numbers[:2], within, same, numbers[2]))
    return markdown(("model", "hop", "weights", "MB", "nll", "largest difference", "tolerance",
                     "same greedy tokens", "difference of their log-probabilities"), lines)


def costs(rows: list[dict]) -> list[str]:
    """A table of what bits and blocks cost: every model and type beside the first model in fp32."""
    _, _, _, whole = next(groups(rows))
    lines = []
    for model, hop, weights, here in groups(rows):
        if not hop.startswith("transformers"):
            differences = [ours["nll"] - theirs["nll"] for ours, theirs in zip(here, whole, strict=True)]
            more = Ratio(np.array(differences), np.array([row["tokens"] for row in here]))
            low, high = more.interval()
            interval = "" if math.isnan(low) else f" [{low:+.4f}, {high:+.4f}]"  # too few documents
            lines.append((model, weights, hop, f"{here[0]['megabytes']:,.0f}", f"{mean_nll(here):.4f}",
                          f"{more.value:+.4f}{interval}"))
    return markdown(("model", "weights", "hop", "MB", "nll", f"more than {rows[0]['model']} in fp32"), lines)


def main() -> None:
    parser = make_parser(__doc__, work="data/benchmark-hops")
    parser.add_argument("models", nargs="+", metavar="[NAME=]FOLDER",
                        help="models' folders or runs; of an adapter its merged folder")
    parser.add_argument("--data", type=Path, required=True, help="a dataset folder")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="at most this many of each document")
    parser.add_argument("--prompt", type=int, default=32, help="tokens before those that are written")
    parser.add_argument("--write", type=int, default=24, help="tokens written after each prompt")
    parser.add_argument("--types", default="f16,q8_0", help=f"of GGUF files, out of {','.join(TYPES)}")
    parser.add_argument("--hops", default=",".join(NEEDS), help="beside nanoprune (default: %(default)s)")
    args = parser.parse_args()
    types, wanted = args.types.split(","), args.hops.split(",")
    for option, given, allowed in (("--types", types, TYPES), ("--hops", wanted, NEEDS)):
        if unknown := set(given) - set(allowed):
            raise ValueError(f"{option}: given {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}")
    if types[0] != "f16" and {"q5_1", "q4_1", "q4_0"} & set(types):
        raise ValueError("--types: q5_1, q4_1 and q4_0 are made of f16; name it first")
    if args.documents < 1 or args.write < 1 or not 1 < args.prompt < args.tokens:
        raise ValueError("--documents and --write must be at least 1, --prompt at least 2 and below --tokens")
    folders = {}
    for model in args.models:
        name, _, folder = ("", "", model) if Path(model).exists() else model.rpartition("=")
        folder, parts = locate(folder), [part for part in Path(folder).parts if part != "model"]
        if is_adapter(folder):  # the converter would write a file without weights, and say that it succeeded
            raise ValueError(f"{model} is an adapter; merge it first: python -m nanoprune merge {folder} "
                             "--out FOLDER")
        name = name or parts[-1]
        if name in folders:
            raise ValueError(f"two models are named {name}; name them: full=runs/full reduced=runs/reduced")
        folders[name] = folder
    documents = read_documents(args.data, args.documents, args.tokens, args.prompt)
    tokenizer = Dataset(args.data).tokenizer
    rows, wanted = [], [hop for hop in wanted if installed(hop)]
    for name, folder in folders.items():
        references = {}
        for hop in hops(name, folder, make_folder(args.work), wanted, types, tokenizer):
            with closing(hop.open()) as engine:
                results = measure(engine, documents, args.write)
            precision = "nf4" if hop.weights == "nf4" else "fp32"
            if hop.name == "nanoprune":
                references[precision] = results
            about = {"model": name, "hop": hop.name, "weights": hop.weights,
                     "megabytes": round(megabytes(hop.stored), 1)}
            rows += [about | row for row in compare(results, references[precision], documents,
                                                   tokenizer)]
            write_csv(args.out / "hops.csv", rows)
    scored = sum(len(document.scored) for document in documents)
    report(["# The same numbers on every hop", "",
            f"{len(documents)} documents, {scored:,} tokens scored, {args.write} tokens written after the "
            f"first {args.prompt} of each; {machine()}. In nats per token.", "",
            *same_numbers(rows), "", "What bits and blocks cost:", "", *costs(rows)], args.out, "hops")


if __name__ == "__main__":
    command_line.run(main)
