"""evaluation/result_cache.py: nothing is measured twice, nothing is mixed, a stopped evaluation resumes."""

import json

from small import make_model, read_rows


def test_what_was_scored_is_kept_and_never_mixed(world, tmp_path, monkeypatch, evaluate):
    """A second run scores nothing; another protocol, another model and a damaged file do."""
    from nanoprune.evaluation import multiple_choice as choices
    from nanoprune.evaluation import perplexity as predict

    calls = []
    for module, name in ((predict, "to_device"), (choices, "to_device")):
        real_send = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real_send=real_send: (calls.append(1), real_send(*a))[1])

    def run(*more, model=world.model):
        calls.clear()
        code, out, _ = evaluate(model, "--data", world.data, "--out", tmp_path / "out", *more)
        assert code == 0
        test = json.loads((tmp_path / "out" / "results.json").read_text())["models"][0]["test"]
        return len(calls), out, test

    first, _, test = run()
    assert first > 0
    again, _, same = run()
    assert again == 0 and same == test
    assert run("--context", "16")[0] > 0 and run("--prefix-token", "0")[0] > 0
    (tmp_path / "g.jsonl").write_text('{"text": "Rivers are long."}\n')
    assert run("--general", tmp_path / "g.jsonl")[0] > 0  # other text under the same name
    assert [row["set"] for row in read_rows(tmp_path / "out" / "documents.csv")].count("general") == 1
    other = make_model(tmp_path / "base", world.data, seed=9)
    found = run(model=other)
    assert found[0] > 0 and found[2]["nll"] != test["nll"]
    assert run()[0] == 0
    for ending, message in (("csv", "does not match its checksum; measuring it again"),
                            ("json", "measuring it again")):
        for path in (tmp_path / "out" / "scores").glob(f"base-test-*.{ending}"):
            path.write_text(path.read_text().replace("1", "{2", 1))
        damaged, out, same = run()
        assert damaged > 0 and message in out and same == test


def test_a_stopped_evaluation_resumes(world, tmp_path, monkeypatch, evaluate):
    """Killed among the questions, it reuses what it had scored, for the results of a whole run."""
    from nanoprune.evaluation import multiple_choice as choices

    arguments = [world.model, "--data", world.data, "--out"]
    assert evaluate(*arguments, tmp_path / "whole")[0] == 0
    scored, calls, real = [], [], choices.loglikelihoods

    def dies(model, groups, **options):
        calls.append(len(groups))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, groups, **options)

    with monkeypatch.context() as patch:
        patch.setattr(choices, "loglikelihoods", dies)
        code, _, err = evaluate(*arguments, tmp_path / "out")
        assert code == 130 and "the same command resumes" in err

    def counts(model, groups, **options):
        scored.append(len(groups))
        return real(model, groups, **options)

    monkeypatch.setattr(choices, "loglikelihoods", counts)
    assert evaluate(*arguments, tmp_path / "out")[0] == 0
    assert len(calls) == 2 and scored == calls[1:]
    for name in ("documents.csv", "questions.csv", "accuracy.csv", "slices.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
