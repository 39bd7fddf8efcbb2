from pathlib import Path

import pytest

from agm.training import UserError
from agm.training.study import read_study


def test_a_study_from_its_file(study):
    found = study()
    assert found.name == "tiny"
    assert [task.name for task in found.tasks] == ["clean", "noisy"]
    assert [(task.config.fusion, task.config.width, task.config.threads) for task in found.tasks] == [
        ("late", 4, 1),
        ("early", 4, 1),
    ]
    assert [entry.label for entry in found.entries] == ["joint", "agm, exact", "ogm"]
    variants = found.entries[1].variants
    assert [(v.method, dict(v.settings)) for v in variants] == [
        ("agm", {"masked": "exact", "alpha": 0.5}),
        ("agm", {"masked": "exact", "alpha": 1.5}),
    ]
    assert [dict(v.options) for v in found.entries[2].variants] == [{"alpha": 0.1}, {"alpha": 0.3}]
    assert [entry.label for entry in found.entries_for(found.tasks[1])] == ["joint", "agm, exact"]
    assert (found.seeds, found.tuning_seeds, found.cost_tasks) == ((0, 1), (50,), ("clean",))


def test_some_cells_with_the_baseline(study):
    one = study().only(["clean:ogm"])
    assert [task.name for task in one.tasks] == ["clean"]
    assert [entry.label for entry in one.entries_for(one.tasks[0])] == ["joint", "ogm"]
    two = study().only(["clean:ogm", "noisy"])
    assert [[e.label for e in two.entries_for(task)] for task in two.tasks] == [
        ["joint", "ogm"],
        ["joint", "agm, exact"],
    ]
    assert study().only([]) == study()
    assert two.pairs == study().pairs == (("agm, exact", "joint"),)
    assert one.pairs == ()
    for wrong in ("dirty", "clean:mlb"):
        with pytest.raises(UserError, match="--only to be among"):
            study().only([wrong])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 2", "trials = 3", r"\[methods.joint\] to have 3 points, as many as `trials`.*but got 2"),
        ("[50]", "[1]", "`tuning_seeds` to be a list of different seeds .* not among the 2"),
        ("seeds = 2\ntrials", "seeds = 0\ntrials", "`seeds` of .study. to be an integer >= 1, but got 0"),
        ("[methods.joint]", "[methods.agm]", "first method to be 'joint'"),
        ("width = 4", "widht = 4", "among .*width.*but got 'widht'"),
        ("width = 4", "seed = 4", "but got 'seed'"),
        ("alpha = [0.1, 0.3]", "beta = [0.1, 0.3]", "settings of method 'ogm' to be among"),
        ('except = ["noisy"]', 'except = ["other"]', "`except` of .methods.ogm. to be among clean, noisy"),
        ("[settings]", "[setings]", "to be among study, settings, tasks, methods, but got 'setings'"),
        ('cost_tasks = ["clean"]', 'cost_tasks = ["x"]', "`cost_tasks` of .study. to be among clean, noisy"),
        ("grid = {lr = [0.02, 0.1]}", "grid = {lr = 0.02}", r"`grid` of \[methods.joint\] to be a table NAME = "),
        ('"joint"]]', '"agm"]]', "`pairs` of .study. to be among joint, agm, exact, ogm, but got 'agm'"),
        ('"joint"]]', '"agm, exact"]]', "`pairs` of .study. to be a list of pairs of methods"),
        ('"joint"]]', '"joint", "ogm"]]', "`pairs` of .study. to be a list of pairs of methods"),
        ("[50]", "[50, 50]", "list of different seeds up to"),
        ("[50]", "[4294967296]", "list of different seeds up to"),
        ("strength = true", 'strength = "no"', "`strength` of .study. to be true or false, but got 'no'"),
        ('cost_tasks = ["clean"]', 'cost_tasks = "clean"', "`cost_tasks` of .study. to be a list of tasks"),
        ('cost_tasks = ["clean"]', 'cost_tasks = ["clean", "clean"]', "a list of tasks, each once"),
        ('except = ["noisy"]', "except = 5", "`except` of .methods.ogm. to be a list of tasks, each once, but got 5"),
        ("alpha = [0.1, 0.3]", "alpha = [1, 1.0]", "`grid` of .methods.ogm. to have each value once"),
        ('method = "agm"', 'method = ["agm"]', r"`method` of \[methods.agm, exact\] to be the name of a method"),
        ("[methods.ogm]", '[methods."o\\ngm"]\nmethod = "ogm"', "labels of methods to be printable"),
        ("[tasks.clean]", '[tasks."../clean"]', "names of tasks to be printable, without"),
        ("[tasks.clean]", '[tasks."clean:ogm"]', "names of tasks to be printable, without"),
        ("[settings]", "[settings.more]", r"among dataset, .* but got 'more'"),
        ("grid = {lr = [0.02, 0.1]}", "lr = 0.1\ngrid = {lr = [0.02, 0.1]}", "`lr` of .methods.joint. once"),
    ],
)
def test_a_file_that_is_no_study(study, folder, old, new, message):
    with pytest.raises(UserError, match=message) as caught:
        study(**{old: new})
    assert str(folder / "tiny.toml") in str(caught.value)


def test_a_file_without_methods(tmp_path):
    (tmp_path / "s.toml").write_text("[study]\nseeds = 1\n[tasks.a]\nwidth = 4\n")
    with pytest.raises(UserError, match=r"to have a table \[methods\], but got none"):
        read_study(tmp_path / "s.toml")


@pytest.mark.parametrize("table", ["study", "settings", "tasks", "methods", "tasks.clean", "methods.joint"])
def test_a_value_in_the_place_of_a_table(tmp_path, table):
    text = {
        "study": "study = {seeds = 1, trials = 1}",
        "settings": "settings = {epochs = 1}",
        "tasks": "tasks = {clean = {width = 4}}",
        "methods": "methods = {joint = {grid = {lr = [0.1]}}}",
    }
    outer, _, inner = table.partition(".")
    text[outer] = f"{outer} = {{{inner} = 5}}" if inner else f"{outer} = [5]"
    (tmp_path / "s.toml").write_text("\n".join(text.values()))
    with pytest.raises(UserError, match=rf"s\.toml: Expected \[{table}\] to be a table NAME = VALUE, but got"):
        read_study(tmp_path / "s.toml")


def test_labels_in_any_script(study):
    found = study(**{"[methods.ogm]": '[methods."é"]\nmethod = "ogm"', '"agm, exact"': '"ü"'})
    assert [entry.label for entry in found.entries] == ["joint", "ü", "é"]


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "studies").iterdir()))
def test_the_studies_of_the_project_are_read(name):
    """Each says how it is run, and gives every method the same number of trials."""
    found = read_study(ROOT / "studies" / name)
    assert f"agm compare studies/{name} " in (ROOT / "studies" / name).read_text()
    assert found.entries[0].label == "joint"
    assert {len(entry.variants) for entry in found.entries} == {len(found.entries[0].variants)}
