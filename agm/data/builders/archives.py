"""Files inside of packages as registries give them: Debian's `.deb`, Python's `.whl`, npm's `.tgz`."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agm.data._files import open_ordinary

__all__ = ["Package", "open_packages", "require"]

LARGEST_FILE = 64 * 2**20  # bytes of one file in a package: pictures and tables are far smaller
_AR, _AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True)
class Package:
    """A package on disk.

    Args:
        path: of its file.
        name, version: as it calls itself.
        sha256: of its file, in hexadecimal digits.
    """

    path: Path
    name: str
    version: str
    sha256: str

    def files(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Contents of its ordinary files whose path `wanted` accepts, by path, sorted. Links are left out.

        Raises:
            ValueError: the package is damaged, or a file in it is too large.
        """
        with _reading(self.path) as file:
            return dict(sorted(_entries(self.path, file, wanted)))

    def record(self) -> dict[str, str]:
        """What a set that was built from it says of it."""
        return {"name": self.name, "version": self.version, "file": self.path.name, "sha256": self.sha256}


def open_packages(paths: Sequence[str | os.PathLike[str]], *names: str) -> list[Package]:
    """The packages called `names`, in this order, among the files that were given.

    Args:
        paths: files ending in .deb, .whl or .tgz.
        names: of the packages, each of which must be there, and no other.

    Raises:
        OSError: a file cannot be read.
        ValueError: a package is missing, there twice, unknown or damaged.
    """
    found = [_describe(Path(path)) for path in paths]
    for package in found:
        if package.name not in names:
            raise ValueError(
                f"Expected {package.path} to be one of the packages {', '.join(names)}, but got {package.name}. "
                "Leave it out, or download the right one."
            )
    by_name = {package.name: package for package in found}
    missing = [name for name in names if name not in by_name]
    if missing or len(found) != len(by_name):
        had = ", ".join(package.name for package in found) or "none"
        raise ValueError(
            f"Expected the packages {', '.join(names)}, once each, but got {had}. "
            "Name every file with --from; agm data build NAME --help says where they come from."
        )
    return [by_name[name] for name in names]


def require(files: dict[str, bytes], path: str, package: Package) -> bytes:
    """The file at `path` of a package.

    Raises:
        ValueError: it is not there.
    """
    if path not in files:
        raise ValueError(
            f"Expected {package.path} to hold {path}, but got no such file. "
            f"Version {package.version} may be laid out otherwise: use the version that the documentation names."
        )
    return files[path]


def _describe(path: Path) -> Package:
    kinds: dict[str, Callable[[Path], tuple[str, str]]] = {".deb": _debian, ".whl": _wheel, ".tgz": _npm}
    if path.suffix not in kinds:
        raise ValueError(
            f"Expected {path} to be a package ending in {', '.join(kinds)}, but got {path.suffix!r}. "
            "Give the file as its registry gives it."
        )
    digest = hashlib.sha256()
    with _reading(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    name, version = kinds[path.suffix](path)
    return Package(path, name, version, digest.hexdigest())


def _debian(path: Path) -> tuple[str, str]:
    with _reading(path) as file, _tar(path, _ar_member(path, file, "control.tar")) as archive:
        control = next((archive.extractfile(entry) for entry in archive if entry.name.strip("./") == "control"), None)
        return _fields(path, b"" if control is None else control.read(), "Package", "Version")


def _wheel(path: Path) -> tuple[str, str]:
    with _reading(path) as file:
        files = dict(_entries(path, file, lambda name: name.endswith(".dist-info/METADATA")))
    return _fields(path, next(iter(files.values()), b""), "Name", "Version")


def _npm(path: Path) -> tuple[str, str]:
    with _reading(path) as file:
        files = dict(_entries(path, file, lambda name: name == "package/package.json"))
    try:
        described = json.loads(files["package/package.json"])
        return str(described["name"]), str(described["version"])
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, "no package.json that reads") from None


def _fields(path: Path, text: bytes, *names: str) -> tuple[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    found = [next((x.split(":", 1)[1].strip() for x in lines if x.startswith(name + ":")), None) for name in names]
    if None in found:
        raise _damaged(path, "no name and version")
    return str(found[0]), str(found[1])


def _reading(path: Path) -> IO[bytes]:
    """An ordinary file, open."""
    with open_ordinary(path):
        return open(path, "rb")


def _entries(path: Path, file: IO[bytes], wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir() and wanted(entry.filename):
                        _check_size(path, entry.filename, entry.file_size)
                        yield entry.filename, archive.read(entry)
            return
        inner = _ar_member(path, file, "data.tar") if path.suffix == ".deb" else file
        with _tar(path, inner) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isreg() and wanted(name):
                    _check_size(path, name, member.size)
                    content = tar.extractfile(member)
                    assert content is not None  # it is an ordinary file
                    yield name, content.read()
    except (EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    except (NotImplementedError, RuntimeError) as error:  # of zipfile: an encrypted entry, another compression
        raise _damaged(path, str(error)) from error


def _check_size(path: Path, name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise ValueError(
            f"Expected {name} in {path} to have {LARGEST_FILE} bytes at most, but got {size}. Is it the right package?"
        )


def _tar(path: Path, file: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r|*")
    except tarfile.TarError as error:
        raise _damaged(path, str(error)) from error


def _ar_member(path: Path, file: IO[bytes], name: str) -> IO[bytes]:
    """The member of a Debian package whose name begins with `name`, such as data.tar.xz."""
    if file.read(len(_AR)) != _AR:
        raise _damaged(path, "no archive of ar")
    while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
        try:
            size = int(header[48:58])
        except ValueError:
            size = -1
        if size < 0:
            raise _damaged(path, "a header that does not read")
        if header[:16].decode("ascii", "replace").startswith(name):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, os.SEEK_CUR)
    raise _damaged(path, f"no {name}")


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"Expected {path} to be a whole package, but got: {reason}. Download it again.")
