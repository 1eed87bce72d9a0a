"""The model card and the other files of a folder that is handed on."""

import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from small import random_base, run_main

from nanoprune.io.files import json_hash, read_json, write_json
from nanoprune.io.folders import check_output
from nanoprune.io.hub import matching_files
from nanoprune.nn.identity import model_identity
from nanoprune.training.model_card import Origin, write_card

KINDS = ("pruned", "halves", "run", "adapter", "merged", "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_every_folder_is_complete(folders, kind):
    folder, base = folders[kind], folders["pruned"].parent / "base"
    files = matching_files(base)
    assert len(files) == 10 and {"tokenizer.model", "tools.jinja"} <= {path.name for path in files}
    for path in [*files, base / "LICENSE"]:
        assert (folder / path.relative_to(base)).read_bytes() == path.read_bytes()
    assert read_json(folder / "generation_config.json") == {"eos_token_id": 0, "temperature": 0.7}
    assert {path.name for path in folder.iterdir()} >= {"config.json", "README.md"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_the_hubs_and_the_text_tells_the_rest(folders, kind, world):
    card, text = ModelCard.load(folders[kind] / "README.md"), (folders[kind] / "README.md").read_text()
    assert card.data.license == "other" and card.data.license_link == "LICENSE"
    assert card.data.language == ["en", "de"] and card.data.tags == ["nanoprune"]
    assert card.data.pipeline_tag == "text-generation" and card.data.base_model is None  # of no hub model
    assert "`base (model.safetensors " in text or kind == "nf4"
    dropped = {"halves": "0,1.attn,2.mlp"}.get(kind, "1")
    assert f"- Dropped, in the original's numbers: `{dropped}` of " in text
    assert "Not evaluated. `python eval.py FOLDER" in text
    assert all(f"| {tool} |" in text for tool in ("transformers", "nanoprune", "llama.cpp", "vLLM", "Ollama"))
    for note, kinds in (("an adapter", ["adapter"]), ("lack their attention", ["halves"]), ("NF4", ["nf4"])):
        assert (note in text) == (kind in kinds)
    trained = kind in ("run", "adapter")
    assert ("lr `0.01`, max_steps `1`, tokens_per_step `64`" in text) == trained == (", fine-tuned" in text)


def test_the_counts_and_days_of_the_data(folders, world, tmp_path):
    run = shutil.copytree(folders["run"].parent, tmp_path / "run")
    data = shutil.copytree(world.data, tmp_path / "data")
    split = {"documents": 12, "tokens": 345, "first": "2024-01-01", "last": "2024-02-03"}
    write_json(data / "meta.json", read_json(data / "meta.json") | {"splits": {"train": split, "val": "x"}})
    write_json(run / "config.json", read_json(run / "config.json") | {"data": str(data)})
    assert write_card(run / "model")
    card = (run / "model" / "README.md").read_text()
    assert ("| split | documents | tokens | first | last |\n| --- | --- | --- | --- | --- |\n"
            "| `train` | `12` | `345` | `2024-01-01` | `2024-02-03` |\n") in card


def test_a_base_of_the_hub_is_named_and_kept(tmp_path):
    """A card of another's names the base of theirs; that of ours, the one that all came from."""
    base, first, second = (random_base(tmp_path / name) for name in ("base", "first", "second"))
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: no-such/older\n---\n")
    assert write_card(first, Origin("Qwen/No-Such", {"model.safetensors": "5f"}, base))
    assert write_card(second, Origin(str(first), {"model.safetensors": "6e"}, first))
    for folder, name in ((first, "`Qwen/No-Such (model.safetensors 5f)`"),
                         (second, "`first (model.safetensors 6e)`")):
        for _ in range(2):
            card = ModelCard.load(folder / "README.md")
            assert (card.data.base_model, card.data.license) == ("Qwen/No-Such", "apache-2.0")
            assert name in card.text
            assert write_card(folder)  # anew, from its own head


@pytest.mark.parametrize("text", [
    "a\n---\nb: 1", "`x` | <b>y</b>\n# z", "\u202e{{}}: [", "#!&*!|>'\"%@", "x" * 9999])
def test_values_from_outside_stay_values(tmp_path, text):
    folder, base = random_base(tmp_path / "m"), random_base(tmp_path / "b")
    (base / "README.md").write_text("---\n" + yaml.safe_dump({"license": text, "language": text}) + "---\n")
    history = [{"original": text, "base": text, "method": text}]
    write_json(folder / "config.json", read_json(folder / "config.json") | {"nanoprune_history": history})
    assert write_card(folder, Origin(text, {text: text}, base))
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() | {"nanoprune_base": ""} == {
        "license": text, "language": text, "nanoprune_base": "", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["nanoprune"]}
    lines = card.text.strip().splitlines()
    assert [line for line in lines if line.startswith("#")] == [lines[0], "## Results [95 %]", "## Load it"]
    for line in lines[:6]:
        outside = line.split("`")[::2]
        assert not set("|<>{}") & set("".join(outside))


@pytest.mark.parametrize("head", ["", "---\n", "---\n[\n---\n", "---\n- a\n---\n", "---\nlicense\n---\n",
                                  "---\n" + "[" * 999 + "\n---\n", "---\n" + "a: b\n" * 99999 + "---\n"])
def test_a_broken_head_tells_nothing(tmp_path, head):
    folder, base = random_base(tmp_path / "m"), random_base(tmp_path / "b")
    (base / "README.md").write_text(head)
    assert write_card(folder, Origin("b", {}, base))
    assert ModelCard.load(folder / "README.md").data.license is None


def test_a_readme_of_ones_own_is_left_alone(folders, tmp_path, monkeypatch, capsys):
    """And a card that was written anew is ours still: its folder may be replaced."""
    folder = shutil.copytree(folders["pruned"], tmp_path / "m")
    code, out, _ = run_main(monkeypatch, capsys, "nanoprune", "card", folder)
    assert code == 0 and out == f"wrote {folder}/README.md\n"
    write_json(tmp_path / "results.json", {"about": "none", "models": []})
    assert run_main(monkeypatch, capsys, "nanoprune", "card", folder, "--results", tmp_path)[0] == 0
    check_output(folder, "model")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "It is mine.\n")
    before = (folder / "README.md").read_text()
    code, _, err = run_main(monkeypatch, capsys, "nanoprune", "card", folder)
    assert code == 2 and "README.md is not ours, or was changed: move it away" in err
    assert (folder / "README.md").read_text() == before


def test_results_are_those_of_exactly_this_model(folders, tmp_path):
    folder = shutil.copytree(folders["pruned"], tmp_path / "m")
    text = {"perplexity": 12.0, "perplexity_interval": [11.0, 13.0], "nll": 2.5, "nll_interval": [2.4, 2.6],
            "bits_per_byte": 1.0, "bits_per_byte_interval": [None, None]}
    model = {"identities": ["other", json_hash(model_identity(folder))], "test": text,
             "qa": {"places": {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}}}
    results = {"about": {"data": "data/x", "protocol": "windows", "machine": "none"},
               "models": [model | {"identities": ["other"], "test": None}, model]}
    write_json(tmp_path / "results.json", results)
    assert write_card(folder, results=tmp_path)
    card = (folder / "README.md").read_text()
    assert ("| measure | value [95 %] |\n| --- | --- |\n| `perplexity, test split` | 12.0 [11.0, 13.0] |\n"
            "| `nll, test split` | 2.50 [2.40, 2.60] |\n| `accuracy, places` | 0.50 [0.40, 0.60] |\n") in card
    assert "Not evaluated" not in card and "Runs like this: 2. `data/x`, `windows`, `none`." in card
    write_json(tmp_path / "results.json", results | {"models": results["models"][:1]})
    assert write_card(folder, results=tmp_path)
    assert "Not evaluated" in (folder / "README.md").read_text()
    write_json(tmp_path / "results.json", {"models": [{"name": "x"}]})
    with pytest.raises(ValueError, match="is not of eval.py, or of an earlier version"):
        write_card(folder, results=tmp_path)
