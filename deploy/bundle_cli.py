"""kerf bundle: keys, signatures of bundles, and whether one is whole and signed by whom you trust."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kerf import console
from kerf.console import Parser


def main(argv: list[str] | None = None, program: str = "kerf bundle") -> int:
    """The command's exit code; ``program`` is what it is called in its lines."""
    return console.guarded(program, lambda: work(sys.argv[1:] if argv is None else argv, program))


def work(argv: list[str], program: str) -> None:
    args = build_parser(program).parse_args(argv)
    console.carry_out(lambda: COMMANDS[args.command](args), args.quiet, args.json)


def build_parser(program: str) -> Parser:
    parser = Parser(program, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    keys = commands.add_parser("keys", help="make a private key, and the public one beside it (.pub)")
    keys.add_argument("key", type=Path, help="file to write; keep it to yourself")
    sign = commands.add_parser("sign", help="sign a bundle")
    sign.add_argument("bundle", type=Path)
    sign.add_argument("--key", type=Path, required=True, help="the private key")
    verify = commands.add_parser("verify", help="whether a bundle is whole, and signed by a key")
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--key", type=Path, required=True, help="the public key (.pub)")
    for command in (keys, sign, verify):
        console.add_flags(command)
    return parser


def make_keys(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.runtime import signature

    public = signature.make_keys(args.key)
    print(
        f"{args.key}: the private key, for kerf bundle sign\n{public}: the public key, for kerf.load(…, trusted_key=…)"
    )
    return {"files": [str(args.key), str(public)]}


def sign(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.runtime import bundle, signature

    bundle.read_manifest(args.bundle)  # what is not whole is not vouched for
    path = signature.sign(args.bundle, args.key)
    print(f"{path}: signed")
    return {"files": [str(path)]}


def verify(args: argparse.Namespace) -> dict[str, Any]:
    from kerf.deploy.runtime import bundle

    bundle.read_manifest(args.bundle, args.key)
    print(f"{args.bundle}: whole, and signed by {args.key}")
    return {"bundle": str(args.bundle), "signed": True}


COMMANDS = {"keys": make_keys, "sign": sign, "verify": verify}

if __name__ == "__main__":
    raise SystemExit(main())
