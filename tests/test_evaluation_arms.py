"""evaluation/arms.py: models are named by what was done to them, seeds put together, steps found."""

import pytest

from nanoprune.evaluation.arms import (
    ALTOGETHER,
    HEALED,
    REDUCED,
    REMOVED,
    TUNED,
    describe_run,
    find_steps,
    make_arms,
    warnings,
)

BASE, OTHER = {"model.safetensors": "aa"}, {"model.safetensors": "bb"}


def result(name: str, *, removed: str = "", base: dict | None = None, **run) -> dict:
    """A result of eval.py, as far as names need it; with settings `run` it is a run's, of this base."""
    history = [{"base_sha256": base or BASE, "original": removed}] if removed else []
    settings = {"name": name, "runs": "runs", "seed": 0, "lr": 0.1, "base": "base", "drop_blocks": removed}
    own = {"model.safetensors": name} if run or removed else base or BASE
    return {"name": name, "history": history, "sha256": own, "run": settings | run if run else None,
            "base_sha256": (base or BASE) if run else None}


FOUR = [result("Qwen"), result("less", removed="2"), result("full", seed=0),
        result("reduced", removed="2", seed=0)]


def named(results: list[dict]) -> list[str]:
    return [arm.name for arm in make_arms(results)]


def test_the_four_models_and_their_steps():
    arms = make_arms(FOUR)
    names = ["base", "base without block 2", "fine-tuned full", "fine-tuned without block 2"]
    assert [arm.name for arm in arms] == names
    steps = {step: [(a.name, b.name) for a, b in pairs] for step, pairs in find_steps(arms).items()}
    assert steps == {REMOVED: [(names[0], names[1])], TUNED: [(names[0], names[2])],
                     HEALED: [(names[1], names[3])], REDUCED: [(names[2], names[3])],
                     ALTOGETHER: [(names[0], names[3])]}
    assert warnings(arms, find_steps(arms)) == []


def test_seeds_become_one_arm_and_other_settings_do_not():
    runs = [result("a", seed=1), result("b", seed=0), result("c", seed=2, lr=0.2)]
    arms = make_arms([FOUR[0], *runs])
    assert [arm.name for arm in arms] == ["base", "fine-tuned full (lr 0.1)", "fine-tuned full (lr 0.2)"]
    assert [arm.seeds for arm in arms] == [[], [0, 1], [2]]
    (warning,) = warnings(arms, find_steps(arms))
    assert "differ in lr: they are not put together" in warning


@pytest.mark.parametrize("results, names", [
    ([FOUR[2]], ["fine-tuned full"]),
    ([FOUR[0]], ["Qwen"]),
    ([FOUR[0], result("Llama", base=OTHER)], ["Qwen", "Llama"]),
    ([FOUR[0], FOUR[1], result("Llama", base=OTHER)], ["Qwen", "Qwen without block 2", "Llama"]),
    ([FOUR[0], result("copy")], ["base (Qwen)", "base (copy)"]),
    ([FOUR[0], result("x", seed=0, lora="all")], ["base", "fine-tuned full (LoRA)"]),
    ([FOUR[0], result("x", seed=0, lora="all", frozen="nf4")], ["base", "fine-tuned full (QLoRA)"]),
    ([FOUR[0], result("half", removed="3,4.attn")], ["base", "base without blocks 3, 4.attn"]),
    ([FOUR[2], result("cut", removed="1", base=FOUR[2]["sha256"])],
     ["fine-tuned full", "fine-tuned full without block 1"]),
    ([result("a", seed=0), result("b", seed=0)], ["fine-tuned full (a)", "fine-tuned full (b)"]),
    ([result("a", batch=8, context=512), result("b", batch=8, context=512, lr=0.2),
      result("c", batch=4, context=64)],
     ["fine-tuned full (a)", "fine-tuned full (b)", "fine-tuned full (batch 4, context 64)"]),
    ([result("a") | {"history": [{"base": "x"}]}], ["base without block ?"]),
    ([result("a", seed=0) | {"base_sha256": None}], ["fine-tuned full"]),
    ([result("scratch", seed=0, base={}) | {"run": {"base": {}, "seed": 0}}, result("x", base=OTHER)],
     ["scratch", "x"]),
])
def test_names(results, names):
    assert named(results) == names


def test_a_healed_model_beside_another_block_is_told():
    arms = make_arms([FOUR[0], result("less", removed="1"), *FOUR[2:]])
    steps = find_steps(arms)
    assert steps[HEALED] == [] and steps[REDUCED]
    (warning,) = warnings(arms, steps)
    assert "began without block 2, and stands beside base without block 1" in warning


def test_arms_of_other_settings_are_told():
    arms = make_arms([*FOUR[:3], result("reduced", removed="2", seed=1, lr=0.3)])
    told = " ".join(warnings(arms, find_steps(arms)))
    assert "differ in lr, too" in told and "the first of each are paired" in told
    arms = make_arms([FOUR[0], *(result(f"full {seed}", seed=seed) for seed in (0, 1)), FOUR[1], FOUR[3]])
    assert "only those of both are paired" in " ".join(warnings(arms, find_steps(arms)))


def test_a_folder_beside_a_log_is_no_run(tmp_path):
    """Only `model` is what a run wrote; a reduced model may lie beside it."""
    for name, content in (("train.csv", ""), ("config.json", '{"lr": 1}'), ("env.json", '{"base": {}}')):
        (tmp_path / name).write_text(content)
    assert describe_run(tmp_path / "less") == {"run": None, "base_sha256": None}
    assert describe_run(tmp_path / "model") == {"run": {"lr": 1}, "base_sha256": {}}
