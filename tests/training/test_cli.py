import importlib.util
import re
import shlex
import sys

import pytest
import torch
from matplotlib import image

import agm.training
from agm.data.av_digits import read_build_settings
from agm.training import load_run, measure_contributions, training_loop
from agm.training.__main__ import main
from agm.training.cli import cli
from agm.training.config import read_config, settings
from agm.training.run_folder import RunFolder, read_table

pytestmark = pytest.mark.usefixtures("plain_pictures")


@pytest.fixture
def options(dataset, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return f"--dataset {dataset} --fusion early --width 8 --epochs 2 --batch-size 16 --threads 1".split()


def failure(capsys, *arguments: str, status: int = 2) -> str:
    """The one line on stderr of a command that fails."""
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_train_leaves_everything_that_it_names(options, tmp_path, capsys):
    assert main(["train", *options, "--alpha", "0.5", "--stop", "none", "--clip-norm", "2"]) == 0
    output = capsys.readouterr().out
    folder = tmp_path / "runs/tiny-early-agm-seed0"
    assert "epoch 2/2" in output
    assert "agm report runs/tiny-early-agm-seed0" in output
    assert "last epoch, never" in " ".join(output.split())
    result = RunFolder(folder).read_result()
    assert f"{100 * result['accuracy']:.1f}" in output
    assert f"{100 * result['response_image']:.1f}" in output
    assert f"{result['coefficient_audio']:.3f}" in output
    config = read_config(folder / "config.toml")
    assert (config.alpha, config.stop, config.clip_norm, config.threads) == (0.5, None, 2.0, 1)
    assert image.imread(folder / "training.png").ndim == 3
    assert len(read_table(folder / "metrics.csv")) == 2


def test_a_config_repeats_a_run_beside_it(options, tmp_path, capsys):
    assert main(["train", *options]) == 0
    assert main(["train", "--config", "runs/tiny-early-agm-seed0/config.toml"]) == 0
    assert main(["train", "--config", "runs/tiny-early-agm-seed0/config.toml", "--seed", "1", "--out", "x"]) == 0
    first, second, third = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("runs/tiny-early-agm-seed0", "runs/tiny-early-agm-seed0-2", "x")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_ctrl_c_says_how_to_go_on_and_going_on_works(options, capsys, monkeypatch):
    assert main(["train", *options, "--out", "whole"]) == 0
    step, calls = training_loop.Trainer._take_step, []

    def interrupted(self, index):
        calls.append(index)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, index)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(training_loop.Trainer, "_take_step", interrupted)
        message = failure(capsys, "train", *options, "--out", "parts", status=130)
    assert message == "Interrupted after 1 of 2 epochs. Continue with: agm train --resume parts\n"
    assert main(["train", "--resume", "parts"]) == 0
    assert "continues after epoch 1/2" in capsys.readouterr().out
    whole, parts = (torch.load(f"{name}/checkpoint.pt", weights_only=True)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_compare_prints_and_writes(options, tmp_path, capsys):
    arguments = ["compare", "--methods", "joint, agm", "--seeds", "2", *options]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "± " in output
    assert "no difference can be claimed" in " ".join(output.split())
    folder = tmp_path / "runs/compare"
    assert "agm report runs/compare" in output
    assert image.imread(folder / "compare.png").ndim == 3
    assert (folder / "compare.csv").exists()
    assert "agm compare --methods joint,agm --seeds 2 --dataset" in (folder / "compare.md").read_text()
    assert (folder / "agm-seed1/training.png").exists()
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert "epoch 1/2" not in again
    assert again.count("finished before") == 4


def test_compare_several_fusions_again_from_its_file(options, tmp_path, capsys):
    shared = [*options[:2], *options[4:]]  # without --fusion
    arguments = ["compare", "--methods", "joint,agm(alpha=2,lr=0.1)", "--fusion", "late,early", "--seeds", "1"]
    assert main([*arguments, *shared, "--epochs", "1", "--out", "one"]) == 0
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if " after epoch " in line]
    assert [line.split("  ")[0] for line in lines] == ["joint seed 0", "agm(alpha=2,lr=0.1) seed 0"] * 2
    assert image.imread("one/compare.png").shape[0] > 900
    assert "**early**" in (tmp_path / "one/compare.md").read_text()
    table = (tmp_path / "one/compare.csv").read_text()
    assert main(["compare", "--config", "one/compare.toml", "--out", "one"]) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    assert (tmp_path / "one/compare.csv").read_text() == table


def test_ctrl_c_in_a_comparison_says_how_to_go_on(options, capsys, monkeypatch):
    def interrupted(self, samples):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_loop.Trainer, "_take_step", interrupted)
    message = failure(capsys, "compare", "--seeds", "1", *options, status=130)
    assert message == "Interrupted. Continue with: the same command: finished runs are not repeated\n"


def test_tune_prints_and_writes_what_it_chose(options, tmp_path, capsys):
    arguments = ["tune", "--setting", "alpha=0,2", "--seeds", "1", "--validation", "0.3", *options, "--epochs", "1"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    rows = read_table(tmp_path / "runs/tune/tune.csv")
    (chosen,) = [row["method"] for row in rows if row["chosen"]]
    assert f"chosen: {chosen}  (tune.csv" in output
    assert "test split was not looked at" in " ".join(output.split())
    assert {row["method"] for row in rows} == {"agm(alpha=0)", "agm(alpha=2)"}


def test_options_of_a_strategy(options, tmp_path):
    arguments = ["train", *options, "--epochs", "1", "--method", "ogm-ge", "--option", "alpha=0.9", "--out", "run"]
    assert main([*arguments, "--option", "noise=false"]) == 0
    assert read_config(tmp_path / "run/config.toml").options == {"alpha": 0.9, "noise": False}
    assert image.imread(tmp_path / "run/training.png").ndim == 3
    rows = read_table(tmp_path / "run/steps.csv")
    assert all(min(row["coefficient_audio"], row["coefficient_image"]) < 1 for row in rows)


def test_evaluate_and_plot_a_run(options, tmp_path, capsys):
    assert main(["train", *options, "--out", "run"]) == 0
    table = capsys.readouterr().out.split("agm, early fusion")[1].split("picture,")[0]
    assert main(["evaluate", "run"]) == 0
    again, contributions = capsys.readouterr().out.split("agm, early fusion")[1].split("contributions:")
    assert again.split() == table.split()
    figures = measure_contributions(load_run("run"))
    assert f"to {100 * figures.accuracy:.1f} %" in contributions
    for name in ("audio", "image"):
        shown = next(line for line in contributions.splitlines() if name in line.split())
        assert f"{100 * figures.alone[name]:.1f}" in shown
        assert f"{100 * figures.contributions[name]:+.1f}" in shown
        assert f"{figures.values[name]:+.2f}" in shown
    assert f"{100 * figures.cooperation:+.1f}" in contributions.split("cooperation")[1].splitlines()[0]
    (tmp_path / "run/training.png").unlink()
    assert main(["plot", "run"]) == 0
    assert (tmp_path / "run/training.png").exists()


def test_a_run_of_one_modality_has_no_contributions(options, capsys):
    assert main(["train", *options, "--method", "unimodal:image", "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 0
    output = capsys.readouterr().out
    assert "unimodal:image, early fusion" in output
    assert "contributions" not in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train --lr fast", "'--lr': 'fast' is not a valid float"),
        ("train --lr -1", "`lr` to be a positive number, but got -1.0"),
        ("train --stop later", "'--stop': 'later' is not a valid integer"),
        ("train --method amg", "one of joint, agm, ogm,"),
        ("train --method amg", "but got 'amg'. Did you mean amgb or aug or agm?"),
        ("train --method joint,agm", "but got 'joint,agm'. Several are for agm compare --methods."),
        ("train mine.npz", "extra argument (mine.npz). Give a dataset with --dataset mine.npz. (see agm train --help)"),
        ("train emoji", "Give a dataset with --dataset emoji."),
        (
            "train --dataset emoji --modalities image name_en",
            "(name_en). Write a list with commas, such as audio,image",
        ),
        ("train --dataset emoji clipart", "(clipart). Write a list with commas"),
        (
            "train --option alpha 0.5",
            "(0.5). Write a list with commas, such as audio,image, and a setting as NAME=VALUE",
        ),
        ("evaluate a b", "extra argument (b) (see agm evaluate --help)"),
        ("train --dataset emojis", "but got 'emojis'. Did you mean emoji?"),
        ("compare --methods joint agm", "STUDY.toml, but got 'agm', which is no file. Write lists with commas"),
        ("compare mine.npz --seeds 2", "got 'mine.npz'. Give data with --dataset mine.npz"),
        (
            "compare --seeds 0,1",
            "'0,1' is not a valid integer. Give the number of runs, and the first seed with --seed",
        ),
        ("train --method ogm-ge --alpha 1", "`alpha` with method agm alone, but got it with 'ogm-ge'"),
        ("train --method ogm --option noice=1", "but got 'noice'. Did you mean `noise`?"),
        ("train --method ogm --option alpha=-1", "`alpha` to be a number >= 0 and finite, but got -1. It was set for"),
        ("train --method agm --option alpha=1", "`alpha` of method 'agm' among the settings"),
        ("train --method mslr", "validation split for method 'mslr', but got none. Hold out"),
        ("train --option alpha", "--option to be NAME=VALUE, but got 'alpha'"),
        ("tune --setting alpha=1,2", "validation split for choosing settings, but got none"),
        ("tune --setting alpha", "--setting to be NAME=VALUE,VALUE"),
        ("tune --setting alpha=1,1", "different values"),
        ("tune", "Missing option '--setting'"),
        ("compare --methods joint,agm(alpha=1", "'joint,agm(alpha=1'"),
        ("compare --methods joint,agm --fusion late,lat", "one of late, late-sum"),
        ("compare --methods joint,agm --jobs 0", "--jobs to be an integer >= 1"),
        ("compare --methods joint,agm(lr=0)", "`lr` to be a positive number, but got 0"),
        ("train --dataset ./none.npz", "none.npz"),
        ("train --config none.toml", "none.toml"),
        ("train --resume none", "none"),
        ("train --resume a --out b", "either --resume or --out"),
        ("train --learning-rate 1", "No such option '--learning-rate'"),
        ("trian", "No such command 'trian'"),
        ("evaluate none", "none"),
        ("plot none", "none"),
        ("compare --methods agm", "two or more different methods, but got agm"),
        ("data build av-digits", "Missing option '--output'"),
        ("data build av-digits --output x.txt", ".npz"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in failure(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_the_ending_of_a_dataset_that_was_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").touch()
    assert "but got 'mine'. Did you mean mine.npz?" in failure(capsys, "train", "--dataset", "mine")
    assert "(image). Give a dataset with" not in failure(capsys, "train", "--modalities", "audio", "image")


def test_modalities_apart_by_spaces(capsys):
    told = failure(capsys, "train", "--dataset", "clipart", "--modalities", "image keywords")
    assert "once each, but got image keywords. Separate them by commas." in told
    assert "but got image words. Check the spelling." in failure(
        capsys, "train", "--dataset", "clipart", "--modalities", "image words"
    )


def test_a_folder_with_a_run_and_other_settings_are_refused(options, capsys):
    assert main(["train", *options, "--out", "run"]) == 0
    capsys.readouterr()
    assert "--resume run" in failure(capsys, "train", *options, "--out", "run")
    assert "lr (0.5, 0.02)" in failure(capsys, "train", "--resume", "run", "--lr", "0.5")


def test_a_run_that_diverges_has_its_own_status(options, capsys, monkeypatch):
    monkeypatch.setattr(training_loop, "learning_rate", lambda config, epoch, history: 1e38)
    assert "--clip-norm" in failure(capsys, "train", *options, status=1)


def test_help_names_every_setting_and_its_default(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for spec in settings():
        assert "--" + spec.name.replace("_", "-") in text
        assert spec.metadata["help"] in text
        assert f"[default: {'none' if spec.default is None else spec.default}]" in text
    assert main([]) == 2
    assert "compare" in capsys.readouterr().out


def test_info_says_what_serves_and_why_the_rest_does_not(capsys):
    assert main(["info"]) == 0
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for service in agm.backends():
        assert service.op.removesuffix("_backward") in output
    for (backend, reason), ops in agm.backends().reasons().items():
        assert f"{backend} {reason}: " in output
        assert all(" tensors only" not in reason and op in output for op in ops)
    assert len(output) < 4000
    assert torch.__version__ in output


def test_data_build_hands_its_options_to_the_builder(tmp_path, capsys, monkeypatch):
    from agm.data import build_av_digits

    calls = []

    def builder(path, **settings):
        settings.pop("progress")(1, 2)
        calls.append((path, settings))
        return path

    monkeypatch.setattr(build_av_digits, "build_av_digits", builder)
    monkeypatch.chdir(tmp_path)
    command = "data build av-digits --image-noise 0.8 --snr -5 10 --seed 3 --output hard.npz"
    assert main(command.split()) == 0
    assert calls == [("hard.npz", {"image_noise": 0.8, "snr": (-5.0, 10.0), "seed": 3})]
    (tmp_path / "hard.npz").write_text("")
    assert "exists" in failure(capsys, *command.split())
    assert len(calls) == 1


def test_three_modalities_are_built_and_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "build", "avt-digits", "--typos", "0.4", "--seed", "3", "--output", "three.npz"]) == 0
    assert "wrote three.npz: agm train --dataset three.npz" in capsys.readouterr().out
    settings = read_build_settings("three.npz")
    assert (settings["typos"], settings["seed"]) == (0.4, 3)
    again = "data build avt-digits --output three.npz"
    assert "exists" in failure(capsys, *again.split())
    assert "--av-digits" in failure(
        capsys, *["data", "build", "avt-digits", "--av-digits", "none.npz", "--output", "x.npz"]
    )
    assert "`typos`" in failure(capsys, *["data", "build", "avt-digits", "--typos", "2", "--output", "x.npz"])

    settings = ["--width", "8", "--epochs", "1", "--batch-size", "256", "--threads", "1", "--out", "run"]
    assert main(["train", "--dataset", "avt-digits", "--masked", "shared", *settings]) == 0
    result = RunFolder(tmp_path / "run").read_result()
    assert result["modalities"] == ["audio", "image", "text"]
    assert {f"coefficient_{name}" for name in result["modalities"]} < set(result)
    assert image.imread(tmp_path / "run/training.png").ndim == 3
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 0
    assert "text" in capsys.readouterr().out.split("contributions:")[1]


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(package, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if re.match(r"agm\.training\.(cli|commands|console)\b", name)]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("cli", "commands", "console"):
        monkeypatch.delattr(agm.training, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == (
        f"agm: error: The command line needs {package}. Install with: pip install 'agm-torch[train]'\n"
    )


def test_without_matplotlib_training_says_so_at_once(options, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert "needs matplotlib. Install with: pip install 'agm-torch[train]'" in failure(capsys, "train", *options)
    assert not (tmp_path / "runs").exists()


def test_without_jinja2_a_report_says_what_to_install(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    assert "needs jinja2. Install with: pip install 'agm-torch[train]'" in failure(capsys, "report", "run")


def test_a_backend_that_cannot_serve_is_refused_before_anything_is_written(options, tmp_path, capsys, monkeypatch):
    for name in ("cuda", "fast"):
        monkeypatch.setenv("AGM_BACKEND", name)
        assert "AGM_BACKEND" in failure(capsys, "train", *options, "--out", "run")
        assert not (tmp_path / "run").exists()
    monkeypatch.setenv("AGM_BACKEND", "reference")
    assert main(["train", *options, "--out", "run"]) == 0
    assert 'backend = "reference"' in (tmp_path / "run/config.toml").read_text()
    assert main(["info"]) == 0
    assert "AGM_BACKEND=reference" in capsys.readouterr().out


def test_resuming_what_is_no_run(options, capsys):
    assert "'nope' to hold a run" in failure(capsys, "train", "--resume", "nope")


def _commands(group, *names):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *names, name)
        else:
            yield (*names, name)


@pytest.mark.parametrize("names", [*_commands(cli)], ids=" ".join)
def test_every_command_has_an_example_that_it_takes(names, capsys):
    """An example line of its help is parsed by the command itself, as far as its options and arguments go."""
    assert main([*names, "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [
        line for line in lines if line.startswith(f"agm {' '.join(names)} ") or line == f"agm {' '.join(names)}"
    ]
    assert examples
    command = cli
    for name in names:
        command = command.commands[name]
    for example in examples:
        command.make_context("agm", shlex.split(example)[1 + len(names) :], resilient_parsing=False)
