"""Ed25519 signatures of bundles (RFC 8032, by the package cryptography): who has the private key vouches for the code.

Signed is manifest.json as it lies there, which holds the SHA-256 of every file that is loaded or run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kerf import files
from kerf.errors import BadInput
from kerf.gate import read_bytes

FILE = "manifest.sig"  # beside the manifest: 64 bytes
CONTEXT = b"kerf bundle, manifest.json\0"  # a signature of anything else is none of a bundle
MOST = 1 << 16  # bytes of a key's file


def make_keys(private: Path) -> Path:
    """Writes a new private key, readable by its owner alone, and <name>.pub beside it, which it returns.

    Raises BadInput where the file exists: a key that is lost is lost.
    """
    from cryptography.hazmat.primitives import serialization as s

    public = private.with_name(f"{private.name}.pub")
    for path in (private, public):
        if path.exists():
            raise BadInput(f"{path}: exists; give another name")
    key = _ed25519().Ed25519PrivateKey.generate()
    handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
        return files.write(public, key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    except BaseException:
        private.unlink()  # a part of it, or a key without its other half
        raise


def sign(folder: Path, private: Path) -> Path:
    """Writes the signature of a bundle that is whole. Raises BadInput, FileNotFoundError."""
    kind = _ed25519().Ed25519PrivateKey
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_bytes(private, "a private key", MOST), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput(
            f"{private}: no private key in PEM without a password; make one with kerf bundle keys"
        ) from error
    if not isinstance(key, kind):
        raise BadInput(f"{private}: a key of another kind; expected Ed25519, as kerf bundle keys makes")
    return files.write(folder / FILE, key.sign(CONTEXT + (folder / "manifest.json").read_bytes()))


def refuse(folder: Path, manifest: bytes, trusted_key: str | Path | bytes) -> None:
    """Raises BadInput unless the bundle is signed by the private key of ``trusted_key``: a file of the public one in
    PEM, or its 32 bytes.
    """
    key = _public(trusted_key)
    from cryptography.exceptions import InvalidSignature

    if not (folder / FILE).exists():
        raise BadInput(f"{folder}: not signed; sign it with kerf bundle sign, or load it without a trusted key")
    try:
        key.verify(read_bytes(folder / FILE, "a signature", MOST), CONTEXT + manifest)
    except InvalidSignature:
        raise BadInput(
            f"{folder}: its signature is not of this key, or the bundle was changed since; do not run it"
        ) from None


def _public(given: str | Path | bytes) -> Any:
    kind = _ed25519().Ed25519PublicKey
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        if isinstance(given, bytes):
            return kind.from_public_bytes(given)
        key = load_pem_public_key(read_bytes(Path(given), "a public key", MOST))
    except (ValueError, UnsupportedAlgorithm) as error:
        what = f"{len(given)} bytes" if isinstance(given, bytes) else given
        raise BadInput(f"{what}: no public key; expected PEM, or 32 bytes of Ed25519") from error
    if not isinstance(key, kind):
        raise BadInput(f"{given}: a key of another kind; expected Ed25519")
    return key


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ImportError("signatures need the package cryptography: pip install 'kerf[sign]'") from error
    return ed25519
