"""The words that the examples understand: a data folder, --small, --seeds and --out."""

import argparse


def options(out: str) -> argparse.ArgumentParser:
    """A parser that an example may add words of its own to; `out` is where results go if nobody says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="the folder of the data")
    parser.add_argument("--small", action="store_true", help="few rows or epochs: seconds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", default=out, help="the folder of results.json, report.html and picture.svg")
    return parser
