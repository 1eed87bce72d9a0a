"""nanoprune/evaluation/measured.py: what docs/studies holds is found again, by all that decides a number."""

import json
from dataclasses import fields, replace

import pytest
from small import ROOT

from nanoprune.config import Config, Study, load_study
from nanoprune.evaluation import multiple_choice, perplexity, removal_losses
from nanoprune.evaluation.measured import (
    APART,
    Measured,
    RunResult,
    differing_keys,
    final_validation,
)
from nanoprune.evaluation.removal_losses import KeptLosses
from nanoprune.io.files import json_hash, read_json
from nanoprune.nn.model_config import ModelConfig
from train import VERSION

STUDIES = sorted((ROOT / "docs" / "studies").iterdir())
# SmolLM2-135M-Instruct's config.json, and the hash that its study's files know it by.
SMOLLM2 = dict(model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536,
               num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, rms_norm_eps=1e-5,
               rope_theta=100_000.0, max_position_embeddings=8192, tie_word_embeddings=True)
SMOLLM2_FINGERPRINT = "5f9138dc64e3dc8fc1802f373ba714ebe1bac306ca1e050450f155e37c88a490"


class NoItems:
    """A set of items that is empty."""

    test, general, questions = [], [], {}


def measured_of(study, folder) -> Measured:
    """A study's files, of a dataset that holds nothing."""
    dataset = type("Empty", (), {"folder": folder})
    return Measured(study, dataset, NoItems, {}, {"train": VERSION}, writes=False)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_kept_losses_are_found_by_their_key(folder):
    path = folder / "blocks.losses.json"
    content = read_json(path)
    assert content
    for key, section in content.items():
        about = section["about"]
        assert key == json_hash(about) and about["version"] == removal_losses.VERSION
        given = {name: about[name] for name in ("weights", "dtype")}
        rest = {name: about[name] for name in about.keys() - given.keys() - {"version"}}
        assert KeptLosses(path, given, writes=False).section(**rest) == section["nll"] != {}
        if folder.name == "smollm2":
            assert about["model"] == SMOLLM2_FINGERPRINT


@pytest.mark.parametrize("folder", [folder for folder in STUDIES if (folder / "measured").is_dir()],
                         ids=lambda folder: folder.name)
def test_kept_runs_are_found_by_their_key(folder, tmp_path):
    """With the settings of their config file as it is now."""
    study = load_study(ROOT / "configs" / f"{folder.name}_study.py")
    now = measured_of(study, tmp_path)
    now.folder = folder / "measured"
    scored = next(iter(read_json(folder / "blocks.losses.json").values()))["about"]
    for path in now.folder.glob("*-*.json"):
        about = read_json(path)["about"]
        assert path == now.path(path.name[: -len("-0123456789.json")], about)
        run = now.read(about)
        assert isinstance(run, RunResult) and (run.diverged or final_validation(run) > 0)
        assert about["versions"] == now.versions
        assert about["base"] == {name: scored[name] for name in ("weights", "model")}
        training = replace(now.training, dtype=about["settings"]["dtype"])
        settings = json.loads(json.dumps(now.about(training, about["teacher"])["settings"]))
        assert not differing_keys(settings, about["settings"])
        assert settings.keys() >= about["settings"].keys()


def test_a_loss_that_was_not_finite_is_the_worst(tmp_path):
    """Kept as null, it is read as nan."""
    study = make_study(tmp_path)
    measured = measured_of(study, tmp_path)
    about, measured.writes = measured.about(study.training, None), True
    measured.folder.mkdir(parents=True)
    run = RunResult(validation=[{"tokens": 0, "nll": [1.0, float("nan")], "predicted": [2, 3]}])
    measured.write("none", about, run)
    for found in (run, measured.read(about)):
        assert final_validation(found) == float("inf") and sum(found.validation[0]["nll"]) != 1


def test_runs_by_adapters_may_have_settings_of_their_own(tmp_path):
    study = replace(make_study(tmp_path), adapters={"lora": "all", "weight_decay": 0.0})
    measured = measured_of(study, tmp_path)
    measured.writes, training = True, replace(study.training, **study.adapters)
    measured.folder.mkdir(parents=True)
    measured.write("adapters", measured.about(training, None), RunResult())
    measured.check()
    measured.write("plain", measured.about(replace(study.training, weight_decay=0.0), None), RunResult())
    with pytest.raises(ValueError, match="of plain-.*weight_decay 0.0, now 0.1"):
        measured.check()


def make_study(folder) -> Study:
    training = Config(
        name="no-such", base="no-such", data="no-such", runs=str(folder), drop_blocks=("14",), batch_size=2,
        accumulation=1, max_steps=60, warmup_steps=6, lr=3e-4, seed=1, dtype="bfloat16", keep="last")
    return Study(name="no-such", training=training, learning_rates=(3e-4,))


def test_the_key_of_a_run_is_what_it_was(tmp_path):
    """A changed hash would lose the results that are kept: a new setting may only stand in APART, or be left
    out of the key while it has its default.
    """
    assert ModelConfig.from_dict(SMOLLM2).fingerprint() == SMOLLM2_FINGERPRINT
    study = make_study(tmp_path)
    measured = measured_of(study, tmp_path)
    measured.versions = {"train": 1, "perplexity": 1, "multiple_choice": 1}
    assert json_hash(measured.about(study.training, None))[:16] == "01eb802321e03e45"


def test_every_setting_but_names_and_places_is_in_the_key(tmp_path, monkeypatch):
    study = make_study(tmp_path)
    measured = measured_of(study, tmp_path)
    teacher = measured.about(study.training, None)
    key = json_hash(measured.about(study.training, teacher))
    other = {str: "no-such", int: 7, float: 0.37, bool: True, tuple: ("3",)}
    for field in fields(Config):
        value = getattr(study.training, field.name)
        changed = replace(study.training, **{field.name: other.get(type(value), "no-such")})
        found = json_hash(measured.about(changed, teacher))
        if field.name not in ("batch_size", "accumulation"):  # of which the product is in the key
            assert (found == key) == (field.name in APART), field.name
    for module in (perplexity, multiple_choice):
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", module.VERSION + 1)
            assert json_hash(measured_of(study, tmp_path).about(study.training, teacher)) != key
