"""Packages as registries give them, made of a few files."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile


def _tar(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def deb(path, name, files, version="1-1"):
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\n".encode()
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(_tar({"./control": control})),
        "data.tar.xz": lzma.compress(_tar({f"./{key}": data for key, data in files.items()})),
    }
    content = b"!<arch>\n"
    for member, data in members.items():
        header = f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        content += header + data + b"\n" * (len(data) % 2)
    path.write_bytes(content)
    return path


def wheel(path, name, files, version="1.0"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        for key, data in files.items():
            archive.writestr(key, data)
    return path


def npm(path, name, files, version="1.0.0"):
    described = json.dumps({"name": name, "version": version}).encode()
    path.write_bytes(gzip.compress(_tar({"package/package.json": described, **files})))
    return path
