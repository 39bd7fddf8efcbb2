import math

import pytest

from agm.training.errors import UserError
from agm.training.run_folder import RunFolder, Table, metric_columns, read_table, step_columns


def test_numbers_come_back_exactly_and_rows_can_be_read_while_the_file_is_open(tmp_path):
    table = Table(tmp_path / "t.csv", ["a", "b", "c", "d"])
    table.append([{"a": 0.1 + 0.2, "b": 3, "c": "test"}, {"a": 1e-320, "d": None}, {"a": math.inf}])
    assert read_table(tmp_path / "t.csv") == [
        {"a": 0.1 + 0.2, "b": 3, "c": "test", "d": None},
        {"a": 1e-320, "b": None, "c": None, "d": None},
        {"a": math.inf, "b": None, "c": None, "d": None},
    ]
    table.append([{"a": math.nan}])
    assert math.isnan(read_table(tmp_path / "t.csv")[-1]["a"])
    table.close()


def test_a_table_begins_anew_with_the_rows_that_are_kept(tmp_path):
    path = tmp_path / "t.csv"
    Table(path, ["step"], [{"step": step} for step in range(5)]).close()
    table = Table(path, ["step"], read_table(path, lambda row: row["step"] < 2))
    table.append([{"step": 9}])
    table.close()
    assert path.read_text() == "step\n0\n1\n9\n"
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4")
    assert read_table(tmp_path / "t.csv") == [{"a": 1, "b": 2}]


def test_no_table_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv.*No such file"):
        read_table(tmp_path / "t.csv")


def test_columns_by_modality():
    assert metric_columns(["x"])[:8] == [
        *("epoch", "step", "split", "lr", "train_loss", "train_accuracy", "loss", "accuracy")
    ]
    assert metric_columns(["x", "y"])[8:12] == ["response_x", "response_y", "absent_x", "absent_y"]
    assert step_columns(["x"]) == [
        *("step", "epoch", "loss", "score_x", "ratio_x", "reference_ratio_x", "coefficient_x")
    ]


def test_a_result_makes_a_run_finished(tmp_path):
    run = RunFolder(tmp_path)
    assert not run.holds_run()
    with pytest.raises(UserError, match="--resume"):
        run.read_result()
    run.write_result({"accuracy": 0.1 + 0.2})
    assert run.read_result() == {"accuracy": 0.1 + 0.2}
