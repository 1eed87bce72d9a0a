"""make makes what is not up to date and nothing else; a scheduler is told how it ended.

Most tests run make with a script in Python's place. It notes what it was asked for, and writes what the real
one would.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import ROOT, article, run_main

from nanoprune.data.dataset import Dataset
from nanoprune.io.folders import lock
from nanoprune.io.jsonl import write_jsonl
from nanoprune.nn.model_config import ModelConfig
from nanoprune.training import budget

SCRIPTS = ("model.py", "scrape.py", "prepare.py", "prune.py", "train.py", "eval.py")
FAKE = """#!/bin/sh
echo "$@" >> calls
fail() { if grep -q "^$script " fails 2>/dev/null; then exit $(sed 's/.* //' fails); fi }
script=$1
out=$(echo "$@" | sed -n 's/.*--out \\([^ ]*\\).*/\\1/p')
case "$*" in
    *--dry-run* | *--resume*) ;;
    scrape.py*) if test -f new; then mv new articles.jsonl; fi;;
    prepare.py*) fail; mkdir -p $out; cp articles.jsonl $out/train.safetensors; echo > $out/meta.json;;
    prune.py*) fail; mkdir -p $out; echo > $out/config.json;;
    train.py*) run=runs/m/$(echo "$@" | sed 's/.*--name=\\([a-z]*\\).*/\\1/')
        mkdir -p $run/state/step-1; cp articles.jsonl $run/config.json; fail;;
    eval.py*) fail; echo > $out/results.md;;
esac
"""
FIRST = ["prepare.py", "train.py --dry-run", "prune.py", "train.py full", "train.py reduced", "eval.py"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the Makefile, a script for Python and some articles."""
    for name in ("Makefile", "nanoprune", "configs", "qa", *SCRIPTS):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "python").write_text(FAKE)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "articles.jsonl").write_text("old\n")
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def compare(checkout, monkeypatch, capsys):
    """A function that makes the comparison: (exit code, scripts that ran, stdout, stderr)."""
    def run(*words: str) -> tuple[int, list[str], str, str]:
        calls = checkout / "calls"
        calls.unlink(missing_ok=True)
        goals = [word for word in words if "=" not in word] or ["comparison"]
        settings = [word for word in words if "=" in word]
        code, out, err = run_main(monkeypatch, capsys, "nanoprune.compare", *goals, "PY=./python",
                                  "BASE=some/m", "ARTICLES=articles.jsonl", *settings)
        called = calls.read_text().splitlines() if calls.exists() else []
        return code, [short(line.split()) for line in called], out, err
    return run


def short(words: list[str]) -> str:
    named = [word.removeprefix("--name=") for word in words
             if word.startswith("--name=") and word != "--name=time"]
    return " ".join([words[0], *(word for word in words if word in ("--dry-run", "--resume")), *named])


def touch(*paths: str) -> None:
    """Make files newer than all others."""
    for path in paths:
        os.utime(path)


def test_what_is_up_to_date_is_not_made_again(compare):
    code, calls, out, _ = compare()
    assert (code, calls) == (0, FIRST) and "results/m/results.md is up to date" in out
    assert compare()[:2] == (0, [])
    touch("articles.jsonl")  # whose content is the same, and so is the dataset's
    assert compare()[:2] == (0, ["prepare.py"])
    assert compare()[:2] == (0, [])
    assert "comparison" in Path("results/compare.log").read_text().splitlines()[0]


@pytest.mark.parametrize(("setting", "calls"), [
    ("PREPARE=--seed=1", ["prepare.py"]), ("SCORE=--tokens=9", [FIRST[1], FIRST[2], FIRST[4], FIRST[5]]),
    ("TRAIN=--lr=1e-3", FIRST[3:]), ("EVAL=--documents=9", FIRST[5:]), ("CONFIG=configs/full.py", FIRST[3:]),
    ("SCRAPE=--limit=1", []), ("BASE=other/m", FIRST)])
def test_a_changed_setting_makes_what_rests_on_it(compare, setting, calls):
    compare()
    assert compare(setting)[:2] == (0, calls)
    assert compare(setting)[:2] == (0, [])


def test_new_articles_flow_through_and_runs_of_before_are_kept(compare):
    compare()
    Path("new").write_text("new\n")
    assert compare("scrape", "comparison")[:2] == (0, ["scrape.py", *FIRST])
    assert compare("scrape", "comparison")[:2] == (0, ["scrape.py"])
    contents = {path.name.partition("-")[::2]: (path / "config.json").read_text()
                for path in Path("runs/m").iterdir()}
    assert {(name, bool(moved)): text for (name, moved), text in contents.items()} == {
        ("full", False): "new\n", ("reduced", False): "new\n", ("full", True): "old\n",
        ("reduced", True): "old\n"}


@pytest.mark.parametrize(("script", "fails", "code", "left"), [
    ("train.py", 3, 3, ["train.py --resume", *FIRST[4:]]), ("prune.py", 130, 3, FIRST[1:]),
    ("prepare.py", 2, 2, FIRST), ("eval.py", 1, 2, FIRST[5:])])
def test_exit_codes(compare, script, fails, code, left):
    """3 where the same command goes on, 2 where somebody has to look; it goes on where it was."""
    Path("fails").write_text(f"{script} {fails}")
    assert compare()[0] == code
    Path("fails").unlink()
    assert compare()[:2] == (0, left)


def test_a_run_without_a_state_begins_anew(compare):
    compare()
    for name in ("full/.finished", "full/state/step-1"):
        path = Path("runs/m") / name
        path.rmdir() if path.is_dir() else path.unlink()
    assert compare()[:2] == (0, ["train.py full", "eval.py"])
    assert [path.name for path in Path("runs/m").glob("full-until-*")]


def test_one_process_at_a_time(compare):
    Path("results").mkdir()
    with open("results/compare.lock", "a") as holder:
        lock(holder)
        code, calls, _, err = compare()
    assert (code, calls) == (3, []) and "another process is at work, see results/compare.log" in err
    assert compare()[0] == 0


@pytest.mark.parametrize(("words", "message"), [
    (["BASE="], "give BASE=, the model"), (["BASE=some/"], "give BASE=, the model"),
    (["BASE=a b"], "give BASE=, the model"), (["ARTICLES=no-such.jsonl"], "there is no file no-such.jsonl"),
    (["ARTICLES=no such.jsonl"], "names have no spaces"), (["no-such"], "No rule to make target"),
    (["--help"], "say what to make")])
def test_mistakes(compare, words, message):
    code, calls, out, err = compare(*words)
    assert (code, calls) == (2, []) and message in out + err and "Traceback" not in err


def test_a_stop_reaches_what_runs_once(checkout):
    """Also one that a whole group of processes gets: a training would end at once at the second signal."""
    Path("python").write_text("""#!/bin/sh
        trap 'echo stop >> signals; stopped=1' TERM
        echo $$ > pid
        while [ -z "$stopped" ]; do sleep 0.1; done
        sleep 0.5
        exit 3
        """)
    process = subprocess.Popen([sys.executable, "-m", "nanoprune.compare", "comparison", "PY=./python",
                                "BASE=m", "ARTICLES=articles.jsonl"], stdout=subprocess.DEVNULL,
                               start_new_session=True)
    while not ((checkout / "pid").is_file() and (checkout / "pid").read_text().strip()):
        assert process.poll() is None
    script = int(Path("pid").read_text())
    assert os.getsid(script) != process.pid  # two signals may look like one to a script
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(30) == 3 and Path("signals").read_text() == "stop\n"
    with pytest.raises(ProcessLookupError):
        os.kill(script, 0)


def test_the_expected_time_is_that_of_the_operations(world, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "matmul_rate", lambda *_: 2e6)  # of which half is usual
    config, data = world.config(tmp_path, max_steps=30), Dataset(world.data)
    model = ModelConfig.read(world.model)
    told = budget.expected_time(config, model, data, torch.device("cpu"))
    scoring, training, evaluation = (float(number) for number in re.findall(r"([\d.]+) to ", told))
    a_token = 2 * budget.matrix_parameters(model) / 1e6 / 60  # minutes to read it
    assert training == pytest.approx(2 * 3 * 30 * 64 * a_token, abs=0.05)
    assert scoring == pytest.approx(4.5 * len(data.split("val").tokens) * a_token, abs=0.05)
    assert evaluation > 4 * len(data.split("test").tokens) * a_token and "for 0 GFLOP/s" in told


def test_the_whole_comparison(checkout, world):
    write_jsonl(Path("articles.jsonl"), [article(i) for i in range(30)])
    train = ("--context=32 --epochs=0 --max_steps=2 --warmup_steps=1 --eval_documents=1 --dtype=float32")
    command = [sys.executable, "-m", "nanoprune.compare", "comparison", f"BASE={world.model}", "NAME=m",
               "ARTICLES=articles.jsonl", "PREPARE=--generated-documents 4", f"TRAIN={train}",
               "SCORE=--context 64 --tokens 200 --dtype float32",
               "EVAL=--general= --context 64 --documents 3 --questions 2 --answers 0 --dtype float32"]
    by_make = os.environ | {"OMP_NUM_THREADS": "1", "MAKELEVEL": "1"}
    first, second = (subprocess.run(command, capture_output=True, text=True, timeout=500, env=by_make)
                     for _ in range(2))
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    for name in ("base without block", "fine-tuned full", "fine-tuned without block"):
        assert f"| {name}" in first.stdout
    assert first.stdout.index("expected minutes: ") < first.stdout.index("loss without each of 3 blocks")
    assert second.returncode == 0 and second.stdout == "results/m/results.md is up to date\n"
    assert second.stdout in Path("results/compare.log").read_text()
