"""evaluation/results_page.py: the page has what there is, and no more."""



def test_one_model_has_no_differences(world, tmp_path, evaluate):
    evaluate(world.model, "--data", world.data, "--out", tmp_path / "out")
    report = (tmp_path / "out" / "results.md").read_text()
    assert "scored tokens" in report and "Differences" not in report
