"""What a bundle is held to before its code runs: its manifest's form, its weights' shapes, its signature; and sessions
that several threads share, with arrays of any layout.
"""

import base64
import hashlib
import json
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

import kerf
from kerf.deploy import bundle_cli
from kerf.deploy.runtime import signature
from kerf.errors import BadInput
from tests.deploy.runtime.test_bundle import TARGET, RecordBook, build, convert, save
from tests.helpers.onnx_networks import mobile


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust")
    network = convert(mobile(folder / "m.onnx"))
    return network.path, save(folder / "m.kerf", build(network, TARGET, RecordBook()), network)


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "m.kerf")


def rehashed(folder, change):
    """The manifest changed by somebody who makes the hashes anew."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    for name in manifest["sha256"] if isinstance(manifest.get("sha256"), dict) else ():
        manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(threads="4"), "Expected `int`, got `str`"),
        (lambda m: m.update(threads=2**40), "1099511627776 threads"),
        (lambda m: m.pop("plans"), "plans"),
        (lambda m: m["needs"].update(features=[None]), "Expected `str`, got `null`"),
        (lambda m: m["plans"][0].update(library="../../x.so"), "which is no plain name"),
        (lambda m: m["plans"][0]["steps"][0].update(weights=[10**6]), "weight 1000000 of"),
        (lambda m: m["plans"][0]["steps"][0].update(inputs=["nowhere"]), "of which nothing is said"),
        (lambda m: m["plans"][0]["inputs"].update(input=[2**40, 3, 32, 32]), "has the shape"),
        (lambda m: m["plans"][0]["inputs"].update(input=[2, 3, 32, 32]), "of other sizes than the network's"),
        (lambda m: m["outputs"].update(classifier={"dtype": "float31", "shape": [1, 10]}), "of type 'float31'"),
        (lambda m: m["weight_types"].reverse(), "other weights than the manifest says"),
        (lambda m: m["weights"].pop(), "other weights|weight "),
        (lambda m: m.update(format=[3]), "format"),
    ],
)
def test_a_manifest_that_was_made_anew_is_held_to_its_form(copy, change, said):
    rehashed(copy, change)
    with pytest.raises(BadInput, match=said) as error:
        kerf.load(copy)
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


def test_weights_of_other_shapes_are_refused_since_compiled_code_does_not_look(copy):
    with np.load(copy / "weights.npz") as file:
        arrays = {name: file[name] for name in file.files}
    first = next(iter(arrays))
    np.savez(copy / "weights.npz", **{**arrays, first: arrays[first].reshape(-1)[:1]})
    rehashed(copy, lambda manifest: None)
    with pytest.raises(BadInput, match="other weights than the manifest says"):
        kerf.load(copy)


def test_a_signature_is_of_one_key_and_one_manifest(copy, tmp_path, capsys):
    pytest.importorskip("cryptography")
    key, other = tmp_path / "own", tmp_path / "other"
    for path in (key, other):
        assert bundle_cli.main(["keys", str(path)]) == 0
    assert key.stat().st_mode & 0o77 == 0
    with pytest.raises(BadInput, match="not signed"):
        kerf.load(copy, trusted_key=f"{key}.pub")
    assert bundle_cli.main(["sign", str(copy), "--key", str(key)]) == 0
    kerf.load(copy, trusted_key=f"{key}.pub")
    kerf.load(copy)
    assert bundle_cli.main(["verify", str(copy), "--key", f"{key}.pub"]) == 0
    assert bundle_cli.main(["verify", str(copy), "--key", f"{other}.pub"]) == 2
    assert "its signature is not of this key" in capsys.readouterr().err
    rehashed(copy, lambda manifest: manifest.update(model="another"))
    kerf.load(copy)  # whole, by its hashes
    with pytest.raises(BadInput, match="its signature is not of this key, or the bundle was changed since"):
        kerf.load(copy, trusted_key=f"{key}.pub")


@pytest.mark.parametrize("content", [b"", b"x" * 64, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_one_line(copy, tmp_path, content):
    pytest.importorskip("cryptography")
    (tmp_path / "k").write_bytes(content)
    for work in (lambda: kerf.load(copy, trusted_key=tmp_path / "k"), lambda: signature.sign(copy, tmp_path / "k")):
        with pytest.raises(BadInput, match=r"no public key|no private key"):
            work()
    assert not (copy / "manifest.sig").exists()


def test_a_key_of_a_kind_that_nobody_knows_is_one_line(copy, tmp_path):
    """Its algorithm's number (1.3.101.112) has one bit changed, in the public key and in the private one."""
    pytest.importorskip("cryptography")
    key = tmp_path / "own"
    public = signature.make_keys(key)
    for path in (key, public):
        first, body, last = path.read_text().splitlines()
        unknown = base64.b64encode(base64.b64decode(body).replace(b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x60"))
        path.write_text("\n".join((first, unknown.decode(), last)))
    with pytest.raises(BadInput, match="no public key"):
        kerf.load(copy, trusted_key=public)
    with pytest.raises(BadInput, match="no private key"):
        signature.sign(copy, key)


@pytest.mark.parametrize("sessions", [1, 8])
def test_eight_threads_get_what_one_gets(made, sessions):
    loaded = [kerf.load(made[1]) for _ in range(sessions)]
    images = np.random.default_rng(0).standard_normal((8, 1, 3, 32, 32)).astype(np.float32)
    alone = [loaded[0].run(x) for x in images]

    def work(i):
        return [loaded[i % sessions].run(images[i]) for _ in range(30)]

    with ThreadPoolExecutor(8) as pool:
        for expected, found in zip(alone, pool.map(work, range(8))):
            assert all(np.array_equal(expected, y) for y in found)


class Sub(np.ndarray):
    pass


def strided(x):
    big = np.zeros((1, 3, 64, 64), np.float32)
    big[:, :, ::2, ::2] = x
    return big[:, :, ::2, ::2]


def shifted(x):
    room = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    room[...] = x
    return room


def locked(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    "form",
    [
        *(strided, shifted, locked, np.asfortranarray, lambda x: x.astype(">f4"), lambda x: x.view(Sub)),
        lambda x: np.ascontiguousarray(x[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
        lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    ],
)
def test_arrays_of_any_layout_and_byte_order_are_taken(made, form):
    session, x = kerf.load(made[1]), np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    given = form(x)
    np.testing.assert_array_equal(given, x)
    np.testing.assert_array_equal(session.run(given), session.run(x))


@pytest.mark.parametrize(
    "given",
    [
        *(None, "x", 3, np.float32(3), np.zeros((1, 3, 32, 32)), np.zeros((1, 3, 32, 32), np.float16)),
        *(np.zeros((1, 3, 32, 32), object), np.zeros(4, [("a", "f4")]), np.zeros((0, 3, 32, 32), np.float32)),
        *(np.ma.masked_array(np.zeros((1, 3, 32, 32), np.float32)), np.zeros((1, 3, 32, 32), complex), [1, 2], {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_one_line(made, given):
    with pytest.raises(BadInput) as error:
        kerf.load(made[1]).run(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-42, -1e-42, -0.0, 3e38])
def test_odd_numbers_are_what_onnx_runtime_makes_of_them(made, value):
    x = np.random.default_rng(2).standard_normal((1, 3, 32, 32)).astype(np.float32)
    x[0, :, 5:8, 5:8] = value
    (truth,) = onnxruntime.InferenceSession(str(made[0])).run(None, {"input": x})
    np.testing.assert_allclose(kerf.load(made[1]).run(x), truth, rtol=1e-4, atol=1e-5)


def test_of_keys_there_are_both_or_none(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))  # as a disk that becomes full
    try:
        with pytest.raises(OSError, match="File too large"):
            signature.make_keys(tmp_path / "own.key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    assert signature.make_keys(tmp_path / "own.key").exists()
