"""The README and docs/ keep their word: commands run as written, and the files they name exist.

Commands run offline. A small random model of the same architecture stands for a hub's, the demo's newsroom
for the real one, and long runs are cut to a few steps. Only files that git tracks count, so that a user's own
files break nothing.
"""

import ast
import csv
import json
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from small import ROOT, SHAPE, make_data, make_model, run_main, write_little

from nanoprune.demo.newsroom import invent, releases
from nanoprune.demo.site import serve
from nanoprune.evaluation import cost


def tracked(*patterns: str) -> list[Path]:
    """Files that git tracks, of these patterns."""
    listing = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("no git checkout: nobody knows which files are the project's", allow_module_level=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


FILES = tracked()
PAGES = {path: path.read_text() for path in tracked("README.md", "docs/*.md")}
README = PAGES[ROOT / "README.md"]
COMMANDS = [line.split("  #")[0].strip() for text in PAGES.values()
            for block in re.findall(r"```bash\n(.*?)```", text, re.S)
            for line in block.splitlines() if line.strip() and not line.startswith("#")]
SHORTER = {  # options that are added to a command, so that a laptop's minute is enough
    "train.py configs": ["--max_steps=2", "--warmup_steps=1", "--batch_size=1", "--accumulation=2",
                         "--context=64", "--eval_every=1", "--eval_documents=2", "--save_every=1"],
    "study.py configs/study": ["--blocks=25"],
    "study.py configs/smollm2": ["--blocks=14"],
    "study.py": ["--seeds=0", "--learning_rates=1e-4", "--max_steps=2", "--warmup_steps=1",
                 "--batch_size=1", "--accumulation=2", "--context=64", "--save_every=1", "--once=",
                 "--longer=", "--dtype=float32"],
    "prepare.py": ["--generated-documents", "6"],
    "scrape.py": ["--base-url", "{site}", "--delay", "0"],
}
PATHS = r"`((?:nanoprune|tests|docs|configs|benchmarks|qa)/[\w./]+|\w+\.py)`"


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.S | re.M)[1]


def table(title: str) -> list[list[str]]:
    """The cells of a README section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readme_fits():
    assert len(README.splitlines()) <= 240


def test_the_tree_names_every_script_and_every_room():
    tree = section("How it works")
    names = [path.name for path in tracked(":(glob)*") if not path.name.startswith(".")]
    names += [f"{path.name}" for path in tracked(":(glob)nanoprune/*.py")]
    names += [f"{path.parent.name}/" for path in tracked(":(glob)*/**/*.py", "qa", ":(glob)docs/*",
                                                                  ":(glob)docs/*/*")]
    missing = set(names) - {"README.md", "LICENSE", "__init__.py"} - set(re.findall(r"[\w.-]+/?", tree))
    assert not missing, f"not in the README's tree: {', '.join(sorted(missing))}"
    for script in tracked(":(glob)*.py"):  # in a place of its own: configs have a study.py, too
        assert re.search(rf"(^| ){script.name}  ", tree, re.M), f"{script.name} has no place in the tree"


def test_every_script_has_a_command():
    scripts = {path.name for path in tracked(":(glob)*.py") if "command_line.run(main" in path.read_text()}
    assert scripts == {shlex.split(c)[1] for c in COMMANDS if c.startswith("python ") and " -m " not in c}
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = PAGES[page]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not anchor or anchor in slugs, f"{page.name} links to {link}, a heading that is not there"
    for path in re.findall(PATHS, text):
        assert (ROOT / path).is_dir() or any(str(file).endswith(f"/{path}") for file in FILES), path


def test_the_tables_of_the_four_models_are_the_results():
    study = ROOT / "docs" / "studies" / "smollm2" / "four_models"
    results, page = (study / "results.md").read_text(), PAGES[ROOT / "docs" / "which_block.md"]
    with open(study / "models.csv", newline="") as file:
        for cells, row in zip(table("Four models"), csv.DictReader(file), strict=True):
            assert cells[:3] == [row["model"], row["blocks"], f"{int(row['params']):,}"]
            right = cells[5].replace(" %", "")
            line = rf"^\| {row['model']} \| {re.escape(cells[3])} \|.* \| {re.escape(right)} \|"
            assert re.search(line, results, re.M)
            assert re.search(rf"\| general \| {row['model']} \|.* {re.escape(cells[4])} \|", results)
    steps = re.findall(r"^\| (\w.*?) \| ([-+].*) \| (.*) \| (.*) \|$", page.split("### Four models")[1], re.M)
    assert len(steps) == 4
    for name, test, general, closed in steps:
        of_step = re.search(rf"^\| {name.replace('block 14', 'the block')} \|.*$", results, re.M)[0]
        assert all(f"| {cell} |" in of_step for cell in (test, general, closed.replace(" [", " points [")))


def test_the_table_of_changes_points_at_code():
    for purpose, places in table("Change something"):
        assert re.search(PATHS, places), purpose
        for path, names in re.findall(r"`([\w./]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", places):
            files = [file for file in FILES if str(file).endswith(f"/{path}")]
            source = min(files, key=lambda file: len(file.parts)).read_text()
            for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
                definition = rf"^\s*(?:def|class) {name}\b|^{name}\b.* = |^\s+(?:\w+\.)?{name}\("
                assert re.search(definition, source, re.M), f"{path} has no {name} ({purpose})"


def test_troubleshooting_quotes_messages():
    """Each quoted part of a message is part of a text in the code."""
    texts = [(ROOT / "Makefile").read_text()]
    for path in tracked("*.py", ":!tests", ":!benchmarks"):
        texts += [node.value for node in ast.walk(ast.parse(path.read_text()))
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for message, _ in table("Troubleshooting"):
        for part in re.findall(r"`([^`]+)`", message):
            assert any(part in text for text in texts), f"no message says {part!r}"


def test_the_tests_of_faults_exist():
    page = PAGES[ROOT / "docs" / "faults.md"]
    default = re.search(r"`(tests/\w+\.py)` unless", page)[1]
    for name, place in re.findall(r"`(test_\w+)`(?: in `(tests/\w+\.py)`)?", page):
        file = ROOT / (place or default)
        assert re.search(rf"^def {name}\(", file.read_text(), re.M), f"{file.name} has no {name}"


def test_make_targets_exist():
    """`make demo` and `make test` are CI's to run; here make only has to know them."""
    for command in (c for c in COMMANDS if c.startswith("make ")):
        words = shlex.split(command)
        made = subprocess.run([words[0], "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the files that commands name, so that no command touches this checkout's data and runs.

    Studies are there, as in a clone: of another base, and on no list of what was written here.
    """
    folder = tmp_path / "checkout"
    for path in tracked("configs", "qa", "docs/studies"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for path in folder.glob("qa/*.jsonl"):  # a few texts and questions are enough here
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    write_little(monkeypatch)
    monkeypatch.setattr(cost, "SECONDS", 0.1)
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.setattr(cost, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    monkeypatch.chdir(folder)
    return folder


def test_every_command_runs(checkout, tmp_path, monkeypatch, capsys):
    company = invent(0, companies=1, models=8, first_day=date(2025, 9, 1))[0]
    articles = releases(company, 14, 1, date(2025, 9, 1))
    own_words = " ".join(text for article in articles for text in article["paragraphs"])
    data = make_data(tmp_path / "data", text=own_words, vocab=1000)
    shape = SHAPE | dict(num_hidden_layers=26, hidden_size=16, intermediate_size=16, num_attention_heads=2,
                         max_position_embeddings=256)
    make_model(checkout / "Qwen" / "Qwen3-0.6B-Base", data, **shape)
    make_model(checkout / "HuggingFaceTB" / "SmolLM2-135M-Instruct", data, **shape | {
        "model_type": "llama", "num_hidden_layers": 15})
    make_model(checkout / "Qwen" / "Qwen2.5-Coder-0.5B-Instruct", data, **shape | {
        "model_type": "qwen2", "num_hidden_layers": 12})
    with serve(articles) as url:
        for command in COMMANDS:
            if command.startswith("make ") or "nanoprune.demo" in command:  # CI runs them
                continue
            words = shlex.split(command.removeprefix("python ").removeprefix("-m "))
            for beginning, options in SHORTER.items():
                if command.startswith(f"python {beginning}"):
                    words += [word.format(site=url) for word in options]
            code, out, err = run_main(monkeypatch, capsys, *words)
            assert code == 0, f"{command}\n{out[-2000:]}\n{err[-3000:]}"
            assert expected_output(command) in out, f"{command}\n{out[-2000:]}"
    results = json.loads((checkout / "results" / "results.json").read_text())
    assert [m["blocks"] for m in results["models"]] == [26, 25, 26, 25]


def expected_output(command: str) -> str:
    """Words that a command prints when it has done its work."""
    outputs = {"sample.py": "[runs/reduced]", "--resume": "up to date", "--dry-run": "nothing is wrong",
               "nanoprune check": "nothing is wrong", "nanoprune push": "a dry run", "--runs": "| status"}
    return next((words for part, words in outputs.items() if part in command), "wrote")
