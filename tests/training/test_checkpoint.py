import os

import pytest
import torch

from agm.training import checkpoint
from agm.training.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint
from agm.training.errors import UserError


def test_what_is_saved_comes_back(tmp_path):
    contents = {"model": {"w": torch.randn(3)}, "epoch": 4, "history": [{"lr": 0.1, "split": "test"}]}
    save_checkpoint(tmp_path / "c.pt", contents)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded["model"]["w"], contents["model"]["w"])
    assert loaded["history"] == contents["history"]
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_write_that_breaks_off_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"epoch": 1})

    def half(contents, file):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["c.pt"]


def test_the_old_file_is_replaced_and_never_written_to(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()
    with open(path, "rb") as old:
        save_checkpoint(path, {"epoch": 2, "model": {"w": torch.zeros(100)}})
        assert old.read() == before
    assert load_checkpoint(path)["epoch"] == 2


class Attack:
    """Unpickled carelessly, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, (os.environ["AGM_TEST_FOLDER"],)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    folder = tmp_path / "made-by-pickle"
    monkeypatch.setenv("AGM_TEST_FOLDER", str(folder))
    torch.save({"format": 3, "x": Attack()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="does not load"):
        load_checkpoint(tmp_path / "c.pt")
    assert not folder.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pt.*does not load"):
        load_checkpoint(tmp_path / "text.pt")
    save_checkpoint(tmp_path / "c.pt", {"epoch": 1})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.pt.*does not load"):
        load_checkpoint(tmp_path / "cut.pt")
    torch.save({"format": 99}, tmp_path / "new.pt")
    with pytest.raises(UserError, match="format 3, but got 99"):
        load_checkpoint(tmp_path / "new.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(UserError, match="got 'list'"):
        load_checkpoint(tmp_path / "list.pt")


def test_the_generator_goes_back():
    state = random_state()
    first = torch.rand(3)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), first)
