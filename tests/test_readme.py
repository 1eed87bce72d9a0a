"""Every command of the README runs as written, offline: where it names a hub's model there lies a small random one of the same
architecture, the newsroom is the demo's, and long runs are cut to a few steps."""

import json
import re
import shlex
import shutil
import subprocess
from datetime import date

import pytest
from small import ROOT, SHAPE, make_data, make_model, run_main

import sample
from nanoprune.demo.newsroom import invent, releases
from nanoprune.demo.site import serve

README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("  #")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S)
            for line in block.splitlines() if line.strip() and not line.startswith("#")]
SHORTER = {  # what is added to a command, so that a laptop's minute is enough
    "train.py configs": ["--max_steps=2", "--warmup_steps=1", "--batch_size=1", "--accumulation=2", "--context=64",
                         "--eval_every=1", "--eval_documents=2", "--save_every=1"],
    "study.py": ["--seeds=0", "--blocks=25", "--learning_rates=1e-4", "--max_steps=2", "--warmup_steps=1", "--batch_size=1",
                 "--accumulation=2", "--context=64", "--save_every=1"],
    "prepare.py": ["--generated-documents", "6"],
    "scrape.py": ["--base-url", "{site}", "--delay", "0"],
}


def test_the_readme_names_every_script_and_every_file():
    scripts = {path.name for path in ROOT.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    assert scripts == {shlex.split(c)[1] for c in COMMANDS if c.startswith("python ") and "-m" not in c}
    assert "make demo" in COMMANDS and "make test" in COMMANDS
    for path in [*ROOT.glob("*.py"), *ROOT.glob("configs/**/*.py"), *ROOT.glob("demo/*.py")]:
        assert path.name in README, f"{path.name} is not in the file tree"
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), f"the README links to {link}, which is not there"


def test_make_targets_exist():
    """`make demo` and `make test` are what CI calls; here only that make knows them and has nothing to add of its own."""
    for command in (c for c in COMMANDS if c.startswith("make ")):
        words = shlex.split(command)
        found = subprocess.run([words[0], "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is in the repository, so that no command touches this one's data and runs."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "demo", "qa"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    return folder


def test_every_command_runs(checkout, tmp_path, monkeypatch, capsys):
    company = invent(0, companies=1, models=8, first_day=date(2025, 9, 1))[0]
    articles = releases(company, 40, 1, date(2025, 9, 1))
    data = make_data(tmp_path / "data", text="The newsroom's own words.")
    make_model(checkout / "Qwen" / "Qwen3-0.6B-Base", data, **SHAPE | dict(
        num_hidden_layers=28, hidden_size=16, intermediate_size=16, num_attention_heads=2, max_position_embeddings=2048))
    commands = [c for c in COMMANDS if c.startswith("python ") and " -m demo" not in c]  # CI runs the demo
    monkeypatch.chdir(checkout)
    generate = sample.generate
    monkeypatch.setattr(sample, "generate", lambda model, ids, room, **how: generate(model, ids, min(room, 6), **how))
    with serve(articles) as url:
        for command in commands:
            words = shlex.split(command)[1:]
            for beginning, more in SHORTER.items():
                if command.startswith(f"python {beginning}"):
                    words += [word.format(site=url) for word in more]
            code, out, err = run_main(monkeypatch, capsys, *words)
            assert code == 0, f"{command}\n{out[-2000:]}\n{err[-3000:]}"
            said = "[runs/reduced]" if "sample.py" in command else "up to date" if "--resume" in command else "wrote"
            assert ("nothing is wrong" if "--dry-run" in command else said) in out, command
    results = json.loads((checkout / "results" / "results.json").read_text())
    assert [m["blocks"] for m in results["models"]] == [28, 27, 28, 27]
