"""Every command of the README runs as written, offline: the hub is a stub on this machine that holds small random models
of the same architecture, the newsroom is the demo's, and long runs are cut to a few steps."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from datetime import date

import pytest
from hub import Hub
from small import ROOT, SHAPE, make_data, make_model

from demo import newsroom, site

README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("  #")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S)
            for line in block.splitlines() if line.strip() and not line.startswith("#")]
SHORTER = {  # what is added to a command, so that a laptop's minute is enough
    "train.py configs": ["--max_steps=2", "--warmup_steps=1", "--batch_size=1", "--accumulation=2", "--context=64",
                         "--eval_every=1", "--eval_documents=2", "--save_every=1"],
    "study.py": ["--seeds=0", "--blocks=25", "--learning_rates=1e-4", "--max_steps=2", "--warmup_steps=1", "--batch_size=1",
                 "--accumulation=2", "--context=64", "--save_every=1"],
    "scrape.py": ["--base-url", "{site}", "--delay", "0"],
}


def test_the_readme_names_every_script_and_every_file():
    scripts = {path.name for path in ROOT.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    assert scripts == {shlex.split(c)[1] for c in COMMANDS if c.startswith("python ") and "-m" not in c}
    assert "make demo" in COMMANDS and "make test" in COMMANDS
    for path in [*ROOT.glob("*.py"), *ROOT.glob("configs/*.py"), *ROOT.glob("demo/*.py")]:
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


def test_every_command_runs(checkout, tmp_path):
    company = newsroom.invent(0, companies=1, models=8, first_day=date(2025, 9, 1))[0]
    articles = newsroom.releases(company, 40, 1, date(2025, 9, 1))
    data = make_data(tmp_path / "data", text="The newsroom's own words.")
    qwen = make_model(tmp_path / "qwen", data, **SHAPE | dict(num_hidden_layers=28, hidden_size=16, intermediate_size=16,
                                                              num_attention_heads=2, max_position_embeddings=2048))
    with Hub({"Qwen/Qwen3-0.6B-Base": qwen}, tmp_path / "cache") as hub, site.serve(articles) as url:
        environment = hub.environment | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}

        def start(command: str) -> subprocess.Popen:
            words = [sys.executable, *shlex.split(command)[1:]]
            for beginning, more in SHORTER.items():
                if command.startswith(f"python {beginning}"):
                    words += [word.format(site=url) for word in more]
            return subprocess.Popen(words, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    text=True)

        def check(command: str, process: subprocess.Popen) -> None:
            out, err = process.communicate()
            assert process.returncode == 0, f"{command}\n{out[-2000:]}\n{err[-3000:]}"
            said = "[runs/reduced]" if "sample.py" in command else "up to date" if "--resume" in command else "wrote"
            said = "nothing is wrong" if "--dry-run" in command else said
            assert said in out, command

        commands = [command for command in COMMANDS if command.startswith("python ")]
        demos = [(command, start(command)) for command in commands if " -m demo" in command]  # on the other core
        for command in commands:
            if " -m demo" not in command:
                check(command, start(command))
        for command, process in demos:
            check(command, process)
        assert sum(path.endswith("model.safetensors") for path in hub.requests) == 1  # downloaded once
    results = json.loads((checkout / "results" / "results.json").read_text())
    assert [m["blocks"] for m in results["models"]] == [28, 27, 28, 27]
