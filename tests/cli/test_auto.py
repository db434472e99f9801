"""`bptt train --k2 auto`."""

import json


def chosen(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [x for x in map(json.loads, lines) if "biases" in x]


AUTO = "--k2 auto --tolerance 0.001 --k2-max 32 --choose-every 2 --seed 1"


def test_a_window_that_is_chosen(bptt, train, book, tmp_path):
    path = tmp_path / "run"
    ended = train(*AUTO.split(), steps=9)
    assert (ended.code, ended.out) == (0, f"{path}\n")
    training = json.loads((path / "config.json").read_bytes())["training"]
    assert (training["k1"], training["k2"], training["tolerance"]) == (8, "auto", 0.001)
    assert (training["k2_max"], training["choose_every"]) == (32, 2)
    lines = chosen(path)
    assert [x["step"] for x in lines] == [2, 4, 6, 8]
    now, changes = 8, 0
    for x in lines:
        said = f"step {x['step']:>6}   k2 {now} -> {x['k2']}, at a bias of "
        assert (said in ended.err) == (x["k2"] != now)
        changes, now = changes + (x["k2"] != now), x["k2"]
    assert changes >= 1
    assert ended.err.count("   k2 ") == changes
    assert f"Choosing k2, {now} in the end, took " in ended.err
    assert " % of the time." in ended.err

    # what training cuts is what was chosen
    found = json.loads(bptt("flow", path, book, "--steps", 40, "--json").out)
    assert found["truncation"] == f"Truncation(k1=8, k2={now})"
    assert f"8,{now}" in found["bias"]


def test_a_chosen_window_is_resumed_with_the_same_options(train, tmp_path):
    assert train(*AUTO.split()).code == 0
    words = AUTO.replace("0.001", "0.002").split()
    ended = train(*words, "--resume", "--out", tmp_path / "run")
    assert ended.code == 0  # it is finished
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    ended = train(*words, "--resume", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "tolerance was 0.001 and is 0.002" in ended.message


def test_a_run_that_ends_before_the_first_choice_says_so(bptt, train, book, tmp_path):
    ended = train("--k2", "auto")
    assert ended.code == 0
    every = json.loads((tmp_path / "run" / "config.json").read_bytes())["training"]
    every = every["choose_every"]
    said = f"k2 stayed at 8: it is first chosen in update {every}, and the run had 3"
    assert said in ended.err
    assert chosen(tmp_path / "run") == []
    found = json.loads(
        bptt("flow", tmp_path / "run", book, "--steps", 40, "--json").out
    )
    assert found["truncation"] == "Truncation(k1=8, k2=8)"
