"""Files of keys: how they are made, and the errors for invalid ones."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from pvlm.cli import main
from pvlm.errors import ConfigError
from pvlm.transports.curve import AUTHORIZED, Keys, new_keys


def test_the_command_makes_keys_that_nobody_else_may_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert main(["keys", "new", str(folder), "--name", "gpu2"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [AUTHORIZED, "gpu2.key", "gpu2.key_secret"]
    assert stat.S_IMODE((folder / "gpu2.key_secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys = Keys.load(folder)
    assert keys.secret.decode() not in (folder / "gpu2.key").read_text()
    assert keys.public.decode() in (folder / "gpu2.key").read_text()
    said = capsys.readouterr().out
    assert str(folder / "gpu2.key") in said
    assert keys.secret.decode() not in said


def test_keys_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_keys(tmp_path, "a")
    before = (tmp_path / "a.key_secret").read_bytes()
    assert main(["keys", "new", str(tmp_path), "--name", "b"]) == 1
    assert "has keys already (a.key_secret)" in capsys.readouterr().err
    assert (tmp_path / "a.key_secret").read_bytes() == before


@pytest.mark.parametrize("name", ["../a", "", "a b"])
def test_a_name_that_is_none_is_an_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", str(tmp_path / "keys"), "--name", name or "/"]) == 1
    assert "is an invalid key name" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


def test_a_directory_without_keys_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no secret key: make a directory with one by `pvlm keys new DIR`"):
        Keys.load(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_secret_key_that_others_may_read_is_an_error(mode: int, tmp_path: Path) -> None:
    new_keys(tmp_path, "a")
    (tmp_path / "a.key_secret").chmod(mode)
    with pytest.raises(ConfigError, match=r"others than you may read .*a\.key_secret': run `chmod 600"):
        Keys.load(tmp_path)


def test_a_worker_trusts_one_engine(tmp_path: Path) -> None:
    keys = Keys.load(new_keys(tmp_path / "worker", "worker").parent)
    with pytest.raises(ConfigError, match="has no public keys: a worker needs one there"):
        keys.engine()
    for name in ("one", "two"):
        shutil.copy(new_keys(tmp_path / name, name), keys.authorized)
        if name == "one":
            assert keys.engine() == Keys.load(tmp_path / "one").public
    with pytest.raises(ConfigError, match="has 2 public keys"):
        keys.engine()


@pytest.mark.parametrize("content", ["", "hello", 'public-key = "short"', f'public-key = "{"é" * 40}"'])
def test_a_file_that_is_no_key_is_named(content: str, tmp_path: Path) -> None:
    keys = Keys.load(new_keys(tmp_path, "a").parent)
    (keys.authorized / "b.key").write_text(content)
    with pytest.raises(ConfigError, match=r"authorized/b\.key'"):
        keys.trusted()
