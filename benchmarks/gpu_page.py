"""The page docs/gpu.md: how to prove nanoprune on a device, and what was found on each device so far."""

import textwrap
from pathlib import Path

from benchmarks.tables import markdown
from nanoprune.io.files import read_json

DEVICES = ("cuda", "mps", "cpu")  # in the order of the page
INTRODUCTION = """# On a GPU: one command that proves it

    PYTHON=/path/to/python benchmarks/gpu.sh --seconds 420
    benchmarks/gpu.sh --device mps
    benchmarks/gpu.sh --device cpu --seconds 240     # the same at a small size

The command runs the device tests and short measurements, and writes this page. It uses the Python that it is
given, installs nothing and needs no network. What is not importable is skipped by name. It ends within
`--seconds`, kills what takes longer, and continues when it is called again. Texts come from the folder
`NANOPRUNE_REAL`, without it from the demo's newsroom. Weights are random: speed and memory do not depend on
their values.

The tests alone: `python -m pytest tests/test_devices.py tests/test_devices_runs.py --device cuda`. They take
the device from that option; CI runs them on the CPU. All numbers stand in `docs/results/gpu-DEVICE.json`.

## What repeats, and what does not

- On a CPU a run repeats bit by bit at a fixed number of threads, and resumes bit by bit.
- On CUDA the matrix products repeat, because `train.py` sets cuBLAS's workspace. Sums into an embedding's
  gradient repeat, too: torch takes its deterministic kernel.
- The backward passes of flash attention and of the memory-efficient kernel (fp32) add in any order, unless
  torch is told `use_deterministic_algorithms(True, warn_only=False)`. `train.py` tells it so on CUDA. An
  operation without a deterministic form then stops the run, and torch names it.
- `test_a_resumed_run_is_the_same_bit_by_bit` trains twice and resumes once, in three types. Its outcome
  below says what held on that card.
- Another card, another torch, another number of ranks or another batch size give other last digits. Both
  arms of a comparison see the same tokens in the same order on every device.

## MPS

Nothing was run on MPS unless a section below says so. Read from torch 2.13's own table of kernels
(`native_functions.yaml`):

- Training, sampling and NF4 call some 100 operations of torch. Each has a kernel for MPS or is made of
  operations that have one. By this table none falls back to the CPU (`PYTORCH_ENABLE_MPS_FALLBACK`).
- Attention is SDPA under a mask, or document by document. Flash attention over packed documents is CUDA's
  alone.
- MPS has no float64. `prune.py` sums the scores `influence`, `angular`, `taylor` and `magnitude` in float64
  on the device, and fails there: score on the CPU (`--device cpu`).
- `dtype=auto` takes fp32. Memory is that of the process, as on a CPU.
"""
ABOUT = {
    "full": "full fine-tuning, a document a row",
    "packed": "the same, releases packed into rows",
    "lean": "`optimizer=lean`, not clipped",
    "recompute": "`recompute=blocks`",
    "compiled": "`compile=True`",
    "lora": "LoRA, rank 8 on all layers",
    "qlora": "QLoRA (`frozen=nf4`, `recompute=blocks`)",
    "trainer": "transformers' Trainer",
    "sft": "TRL's SFTTrainer, its own defaults",
}


def write(folder: Path) -> str:
    """The page from all results in a folder."""
    lines, absent = INTRODUCTION.splitlines() + [""], []
    for device in DEVICES:
        path = folder / f"gpu-{device}.json"
        if path.is_file():
            lines += section(read_json(path))
        else:
            absent.append(device)
    if absent:
        lines += [f"Not run here so far: {', '.join(absent)}."]
    return "\n".join(map(wrap, lines)) + "\n"


def wrap(line: str) -> str:
    """A long sentence in lines of the width that the other pages have; tables stay as they are."""
    if line.startswith("|"):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
                         replace_whitespace=False, drop_whitespace=not line.startswith(" ")) if line else ""


def section(results: dict) -> list[str]:
    """What was found on one device."""
    seen, parts = results["environment"], results["parts"]
    versions = ", ".join(f"{name} {number}" for name, number in seen["packages"].items())
    dates = sorted({part["date"] for part in parts.values() if "date" in part})
    commits = sorted({part["commit"] or "unknown" for part in parts.values() if "commit" in part})
    lines = [f"## {seen['card']}", ""]
    facts = [f"{seen['memory_gb']:.0f} GB{' free' if seen['device'] != 'cuda' else ''}"]
    if "cuda" in seen:
        facts += [f"compute capability {seen['capability']}", f"CUDA {seen['cuda']}"]
    else:
        facts.append(f"{seen['threads']} thread{'s' * (seen['threads'] != 1)}")
    facts += seen.get("bridged", [])
    lines += [f"{', '.join(facts)}; Python {seen['python']}, torch {seen['torch']}, {versions}. "
              f"{' to '.join(dict.fromkeys(dates[:1] + dates[-1:]))}, commit {', '.join(commits)}.", ""]
    if seen["size"] == "small":
        lines += ["**A run at a small size**: it shows that each part works, and says little of speed.", ""]
    rates = [f"{name} {rate:,.3g}" for name, rate in seen.get("tflops", {}).items()]
    if rates:
        lines += [f"Square products of random values, TFLOP/s: {', '.join(rates)}. A copy moves "
                  f"{seen['copy_gb_s']:,.0f} GB/s.", ""]
    made = parts.get("make", {}).get("result")
    if made:
        lines += [f"The model has {made['parameters'] / 1e6:,.0f} M parameters in {made['blocks']} blocks. A "
                  f"step is {made['rows']} x {made['context']:,} tokens of {made['documents']} "
                  f"{made['source']} (tokenizer: {made['tokenizer']}).", ""]
    return lines + tests(parts) + training(parts) + products(parts) + other(parts) + left(parts)


def tests(parts: dict) -> list[str]:
    found = parts.get("tests", {})
    if "result" not in found:
        return []
    result = found["result"]
    lines = ["### Device tests", "", f"{result['passed']} passed, {len(result['failed'])} failed, "
             f"{result['skipped']} were skipped, in {found['seconds']:.0f} s"
             + (", and then the time ran out." if found["state"] == "out of time" else "."), ""]
    lines += [f"- failed: `{test}`: {message}" for test, message in result["failed"].items()]
    lines += [f"- skipped, {count}: {reason}" for reason, count in result["reasons"].items()]
    return lines + [""] * (lines[-1] != "")


def training(parts: dict) -> list[str]:
    """The table of all that trains, ours and others', and the ratio of each speed to full fine-tuning."""
    rows, full = [], parts.get("full", {}).get("result", {}).get("tokens_s")
    for name, about in ABOUT.items():
        result = parts.get(name, {}).get("result")
        if not result:
            continue
        if result.get("rows_at_once", 0) not in (0, parts["make"]["result"]["rows"]):
            about += f", {result['rows_at_once']} rows at a time (more did not fit)"
        rows.append([
            about, f"{result['tokens_s']:,.0f}", f"{result['tokens_s'] / full:.2f}" if full else "",
            f"{result['mfu']:.0%}" if "mfu" in result else "", f"{result['memory_gb']:.2f}",
            f"{result['foretold_gb']:.2f}" if "foretold_gb" in result else "", f"{result['first_loss']:.4f}"])
    if not rows:
        return []
    header = ["training", "tokens/s", "to full", "MFU", "peak memory, GB", "foretold, GB", "first loss"]
    return ["### Training", "", *markdown(header, rows), "",
            "MFU is the share of the rate that products of random values have, measured in the same process. "
            "For full fine-tuning in bf16 at Qwen3-0.6B's shape the aim is 50 %, at least 40 %. Rates leave "
            "the first two steps out. Foretold is the memory that train.py prints before a run.", ""]


def products(parts: dict) -> list[str]:
    """The step by kernels."""
    result = parts.get("profile", {}).get("result")
    if not result:
        return []
    shares = [[kind, f"{share:.1%}"] for kind, share in result["shares"].items()]
    lines = ["### A step by kernels", "", f"A step takes {result['step_s'] * 1e3:,.0f} ms; its kernels are "
             f"busy for {result['busy']:.0%} of it.", "",
             *markdown(["kind", "share of the kernels' time"], shares), ""]
    others = [[f"`{name}`", f"{share:.1%}"] for name, share in result["others"].items()]
    return [*lines, *markdown(["what is no product", "share"], others), ""]


def other(parts: dict) -> list[str]:
    """Head, scoring and decoding."""
    lines, head = [], parts.get("head", {}).get("result")
    if head:
        rows = [[name, f"{form['ms']:,.1f}" if "ms" in form else form["error"],
                 f"{form['memory_gb']:.2f}" if "memory_gb" in form else "",
                 f"{form['loss_differs']:.0e}" if "loss_differs" in form else ""]
                for name, form in head["forms"].items()]
        header = ["head and loss with gradients", "ms", "peak memory, GB", "loss differs by"]
        lines += [f"### The head: {head['tokens']:,} tokens, vocabulary {head['vocabulary']:,}", "",
                  *markdown(header, rows), ""]
    scored = parts.get("scores", {}).get("result")
    if scored:
        lines += ["### Scoring blocks", "", f"The loss without each of {scored['blocks']} blocks over "
                  f"{scored['tokens']:,} tokens in fp32 takes {scored['seconds']:.2f} s. As many forward "
                  f"passes take {scored['forwards_s']:.2f} s, {1 / scored['to_forwards']:.2f} times that.",
                  ""]
    rows = []
    for name, about in (("decode", "nanoprune"), ("generate", "transformers' `generate`")):
        result = parts.get(name, {}).get("result")
        if result:
            rows.append([about, *(f"{result['tokens_s'].get(count, 0):,.0f}" for count in ("1", "32"))])
            tokens = f"{result['prompt']} tokens of prompt, {result['new_tokens']} new ones, greedy"
    if rows:
        lines += [f"### Decoding: {tokens}", "", *markdown(["new tokens/s", "1 sequence", "32"], rows), ""]
    return lines


def left(parts: dict) -> list[str]:
    """What was not done, and why."""
    rows = [[name, part["state"], part.get("why", "")] for name, part in parts.items()
            if part["state"] != "done"]
    return ["### Not done", "", *markdown(["part", "state", "reason"], rows), ""] if rows else []


def short_table(results: dict) -> list[str]:
    """The table that the command prints last."""
    rows = []
    for name, part in results["parts"].items():
        found = headline(part) or part.get("why", "")
        rows.append([name, part["state"], f"{part.get('seconds', 0):.0f}", found])
    return markdown(["part", "state", "s", "what was found"], rows)


def headline(part: dict) -> str:
    """The most telling numbers of a part."""
    result = part.get("result", {})
    if "passed" in result:
        return f"{result['passed']} passed, {len(result['failed'])} failed, {result['skipped']} skipped"
    if "step_s" in result and "tokens_s" in result:
        mfu = f", MFU {result['mfu']:.0%}" if "mfu" in result else ""
        return f"{result['tokens_s']:,.0f} tokens/s{mfu}, {result['memory_gb']:.1f} GB"
    if "shares" in result:
        return f"matrix products {result['shares']['matrix products']:.0%} of the kernels' time"
    if "forms" in result:
        return ", ".join(f"{name} {form['ms']:.0f} ms" if "ms" in form else f"{name} {form['error']}"
                         for name, form in result["forms"].items())
    if "to_forwards" in result:
        return f"{result['seconds']:.2f} s, {result['to_forwards']:.2f} of as many forward passes"
    if "tokens_s" in result:
        return ", ".join(f"{rows} at once {rate:,.0f} tokens/s" for rows, rate in result["tokens_s"].items())
    return f"{result['tokens']:,} tokens" if "tokens" in result else ""
