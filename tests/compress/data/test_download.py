"""CIFAR from a server on this machine, as torchvision fetches it from its own."""

import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest

from kerf.compress import cli
from kerf.compress.data import download
from kerf.compress.data.sets import Options, open_data

FOLDER = "cifar-10-batches-py"


def archive() -> bytes:
    """A .tar.gz of CIFAR's files with four images each."""
    random, packed = np.random.default_rng(0), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            images = random.integers(0, 256, (4, 3072), dtype=np.uint8)
            names = [f"{name}_{i}.png".encode() for i in range(4)]
            content = {b"data": images, b"labels": [0, 1, 2, 3], b"filenames": names}
            data = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture
def served(monkeypatch):
    content = archive()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = type("Tiny", (download.SOURCES["cifar10"],), {
        "url": f"http://127.0.0.1:{server.server_port}/cifar.tar.gz",
        "tgz_md5": hashlib.md5(content).hexdigest(),
    })  # fmt: skip
    monkeypatch.setitem(download.SOURCES, "cifar10", source)
    yield source
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_or_empty_folder_is_filled(there, served, tmp_path):
    root = tmp_path / "data"
    if there:
        root.mkdir()
    data = open_data("cifar10", Options(path=root))
    assert len(data.train.names) + len(data.val.names) == 20
    assert len(data.test.names) == 4
    assert [p.name for p in root.iterdir()] == [FOLDER]  # neither the archive nor anything on its way
    served.url = "http://127.0.0.1:9/"
    assert open_data("cifar10", Options(path=root)).test.names == data.test.names  # once is enough


def test_a_folder_with_something_else_is_left_alone(served, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="no cifar10 in"):
        open_data("cifar10", Options(path=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_without_a_network_there_is_one_line_and_nothing_is_left(served, tmp_path, capsys):
    served.url = "http://127.0.0.1:9/cifar.tar.gz"  # nobody listens there
    flags = ["--data_set=cifar10", f"--data_path={tmp_path / 'data'}", f"--job_dir={tmp_path / 'run'}"]
    assert cli.main(flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: no folder")
    assert "cannot be downloaded" in last
    assert not any(tmp_path.iterdir())


def test_an_archive_that_is_not_the_one_is_refused(served, tmp_path):
    served.tgz_md5 = "0" * 32
    with pytest.raises(ValueError, match=r"cannot be downloaded \(File not found or corrupted"):
        open_data("cifar10", Options(path=tmp_path / "data"))
    assert not any(tmp_path.iterdir())
