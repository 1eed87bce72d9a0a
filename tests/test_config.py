"""nanoprune/config.py: every shipped config parses, every mistake is named, all at once."""

import re
import subprocess
from dataclasses import fields, replace

import pytest
from small import ROOT

from nanoprune.config import Config, config_from_dict, load_config, load_study

TRACKED = subprocess.run(["git", "ls-files", "configs/*.py"], cwd=ROOT, capture_output=True, text=True)
SHIPPED = [path for path in TRACKED.stdout.split() if not path.endswith("__init__.py")]
GOOD = dict(name="x", base="some/model", data="data/x")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs(name):
    path = ROOT / name
    config = load_study(path).training if "study" in path.name else load_config(path)
    assert not config.problems()
    assert config_from_dict(config.to_dict(), name) == config


@pytest.mark.parametrize("arm", ["reduced", "demo_reduced"])
def test_the_arms_differ_by_the_block_alone(arm):
    reduced, full = (load_config(ROOT / "configs" / f"{name}.py")
                     for name in (arm, arm.replace("reduced", "full")))
    assert replace(reduced, name=full.name, drop_blocks=()) == full and len(reduced.drop_blocks) == 1


def test_every_setting_says_what_it_is():
    lines = (ROOT / "nanoprune" / "config.py").read_text().splitlines()
    for f in fields(Config):
        assert any(re.match(rf"    {f.name}: .*  # ", line) for line in lines), f"{f.name} has no comment"


def test_overrides_are_read_by_type(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(f"from configs import Config\nconfig = Config(**{GOOD})")
    config = load_config(path, ["--lr=1e-5", "--max-steps=7", "--warmup_steps=0", "--drop_blocks=3,1",
                                "--name=a b",
                                "--revision=abc", "--base=other/model"])
    assert (config.lr, config.max_steps, config.drop_blocks, config.name) == (1e-5, 7, (3, 1), "a b")
    assert (config.revision, config.base) == ("abc", "other/model")
    assert load_config(path, ["--drop_blocks=()", "--revision=None"]) == load_config(path)
    assert load_config(path, ["--compile=true", "--recompute=none"]) == replace(load_config(path),
                                                                                compile=True)


def test_steps_on_the_command_line_decide_over_the_epochs_of_a_file(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(f"from configs import Config\nconfig = Config(**{GOOD | {'epochs': 3}})")
    steps = load_config(path, ["--max_steps=70"])
    both = load_config(path, ["--max_steps=70", "--epochs=2"])
    assert (steps.epochs, steps.max_steps, both.epochs, load_config(path).epochs) == (0, 70, 2, 3)


@pytest.mark.parametrize("override, message", [
    ("--accumulation=100000000000", "accumulation: given 100000000000, must be from 1 to 10,000,000"),
    ("--accumulation=100000", "batch_size x accumulation x context comes to"),
    ("--pair_repeats=1000000000000", "pair_repeats: given 1000000000000, must be from 0 to 10,000,000"),
    ("--lora_rank=10000000000", "lora_rank: given"), ("--seed=-1", "seed: given -1, must be from 0 to"),
    ("--lr=fast", "lr: given 'fast', must be a number"), ("--max_steps=1.5", "max_steps: given '1.5', must "
                                                          "be a whole number"),
    ("--learning_rate=1", "learning_rate: no such setting; there are name, base, "),
    ("--max_step=5", "max_step: no such setting (did you mean max_steps?)"),
    ("--drop_blocks=a", "drop_blocks: given 'a'"),
    ("--lr", "overrides are written --key=value"), ("lr=1", "overrides are written --key=value"),
    ("--lr=nan", "lr: given nan, must be a number"), ("--lr=0", "lr: given 0.0, must be above 0 and below 1"),
    ("--teacher_share=0.9", "teacher_share: goes with --teacher"),
    ("--dtype=bf16", "dtype: given 'bf16', must be auto or float32 or bfloat16 or float16"),
    ("--dtype=float23", "did you mean float32?"), ("--device=gpu", "device: given 'gpu'"),
    ("--keep=first", "keep: given 'first', must be best or last"), ("--name=a/b", "name: given 'a/b'"),
    ("--name=..", "name: given '..'"), ("--name=a\nb", "name: given 'a\\nb'"),
    ("--threads=10000000", "threads: given 10000000, must be from 0 to 1,024"),
    ("--device=cuda:" + "9" * 20, "device: given 'cuda:99999999999999999999'"),
    ("--drop_blocks=1,1", "drop_blocks: given (1, 1)"), ("--drop_blocks=-1", "drop_blocks: given (-1,)"),
    ("--warmup_steps=1000", "warmup_steps: given 1000, must be from 0 to below max_steps"),
    ("--compile=yes", "compile: given 'yes', must be true or false"),
    ("--recompute=block", "recompute: given 'block', must be none or pointwise or blocks (did you mean "
     "blocks?)"),
    ("--optimizer=no-such", "optimizer: given 'no-such', must be adamw or lean"),
    ("--optimizer=lean", "it needs "
                                                                           "clip=0 (given 1.0)"),
    ("--context=0", "context: given 0, must be from 1 to"), ("--beta2=1", "beta2: given 1.0, must be from "
                                                              "0 to below 1"),
])
def test_mistakes_are_named(tmp_path, override, message):
    path = tmp_path / "c.py"
    path.write_text(f"from configs import Config\nconfig = Config(**{GOOD})")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(path, [override])


@pytest.mark.parametrize("code, messages", [
    ("config = Config(nmae='x', lr='fast')", ["nmae: no such setting (did you mean name?)", "data: missing"]),
    (f"config = Config(**{GOOD}, lr='fast', clip=-1)", ["lr: given 'fast'", "clip: given -1"]),
    (f"config = Config(**{GOOD}, lr='fast', batch_size=True, drop_blocks=[1])",
     ["lr: given 'fast'", "batch_size: given True", "drop_blocks: given [1]"]),
    (f"config = Config(**{GOOD}, patience=2, eval_every=0, clip=-1)",
     ["patience: given 2, has no effect", "clip: given -1"]),
    (f"config = Config(**{GOOD | {'base': {'model_type': 'qwen3'}}}, drop_blocks=(1,), revision='x')",
     ["revision: given 'x', has no effect", "drop_blocks: a model trained from scratch"]),
    ("configuration = 1", ["binds no `config`"]),
    ("config = 1 / 0", ["c.py, line 2: ZeroDivisionError"]),
    ("config = = 1", ["c.py: SyntaxError: invalid syntax (c.py, line 2)"]),
    ("from configs import Confg", ["ImportError"]),
])
def test_all_mistakes_of_a_file_at_once(tmp_path, code, messages):
    path = tmp_path / "c.py"
    path.write_text(f"from configs import Config\n{code}\n")
    with pytest.raises(ValueError) as error:
        load_config(path)
    for message in messages:
        assert message in str(error.value)


def test_a_missing_file():
    with pytest.raises(ValueError, match="there is no config file configs/ful.py; shipped ones are in "
                       "configs/"):
        load_config("configs/ful.py")
