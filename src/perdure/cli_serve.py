"""The commands that keep a model at work: check, serve, watch and export."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from perdure import cli_store

DONE, DRIFTED = 0, 3
LOOPBACK = ("127.0.0.1", "localhost")
TOKEN = "PERDURE_TOKEN"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds check, serve, watch and export."""
    check = cli_store.command(commands, "check", _check, "whether new rows differ from what was learnt")
    check.add_argument("data", help="a .parquet, .csv, .tsv or .jsonl file, or a folder of images; no labels needed")
    serve = cli_store.command(commands, "serve", _serve, "answer over HTTP, take feedback, learn beside it")
    serve.add_argument("--host", default="127.0.0.1", help="127.0.0.1 unless given; others need a token")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--most-bytes", type=int, default=10_000_000, metavar="N", help="largest body of a request")
    watch = cli_store.command(commands, "watch", _watch, "learn each new file of a folder")
    watch.add_argument("folder", type=Path)
    watch.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="10 unless given")
    watch.add_argument("--once", action="store_true", help="look once, and end")
    watch.add_argument("--when", choices=["always", "drift"], default="always", help="drift: wait until rows differ")
    watch.add_argument("--least", type=int, default=0, metavar="ROWS", help="wait until there are so many")
    export = cli_store.command(commands, "export", _export, "the model as an ONNX file that answers alike")
    export.add_argument("out", type=Path, metavar="FILE.onnx")


def _check(arguments: argparse.Namespace) -> int:
    """Whether new rows differ from what the model learnt, without labels (exit code 3 where they do)."""
    from perdure.recipes import tables
    from perdure.store import drift

    found = drift.check(cli_store.opened(arguments), tables.read(arguments.data))
    for sentence in found.sentences:
        print(sentence)
    return DRIFTED if found.moved else DONE


def _serve(arguments: argparse.Namespace) -> int:
    """Answer over HTTP until it is stopped. The environment's PERDURE_TOKEN, where set, is asked of every request."""
    token = os.environ.get(TOKEN) or None
    if arguments.host not in LOOPBACK and token is None:
        raise cli_store.refusal(f"--host {arguments.host}: others can reach it there, so set {TOKEN} to a secret")
    try:
        import uvicorn

        from perdure.service import app
    except ImportError as error:
        raise cli_store.refusal(
            f"a service needs fastapi and uvicorn: pip install 'perdure[serve]' ({error})"
        ) from None
    cli_store.built(arguments)  # finds the module, and says what is wrong with it
    names = app.LOOPBACK if arguments.host in LOOPBACK else ["*"]
    service = app.create_app(
        arguments.store, arguments.name, build=arguments.build, token=token, most_bytes=arguments.most_bytes,
        hosts=names,
    )  # fmt: skip
    print(f"{arguments.name}: http://{arguments.host}:{arguments.port}/")
    uvicorn.run(service, host=arguments.host, port=arguments.port, log_level="warning")
    return DONE


def _watch(arguments: argparse.Namespace) -> int:
    """Learn each new file of a folder, once, in the order of names; what was done is kept in the store."""
    from perdure.store.folder import StoreError
    from perdure.store.watch import Watch

    watch = Watch(cli_store.opened(arguments), arguments.folder, arguments.when, arguments.least)
    said = ""
    while True:
        try:
            for seen in watch.once(settle=min(1.0, arguments.every)) if arguments.once else watch.look():
                version = "" if seen.version is None else f" version {seen.version}"
                print(f"{', '.join(seen.files)}: {seen.event}{version}{''.join(f'; {why}' for why in seen.why)}")
            said = ""
        except StoreError as error:  # busy, for instance
            if arguments.once:
                raise
            if str(error) != said:
                print(f"perdure: {error}; waiting", file=sys.stderr)
            said = str(error)
        if arguments.once:
            return DONE
        time.sleep(arguments.every)


def _export(arguments: argparse.Namespace) -> int:
    """Write the version in production as ONNX, if it answers an exam's rows alike."""
    from perdure.store.export import export

    apart = export(cli_store.opened(arguments), arguments.out)
    print(f"{arguments.out}: probabilities differ by at most {apart:.1g} on the exams' rows")
    return DONE
