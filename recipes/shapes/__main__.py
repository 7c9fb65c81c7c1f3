"""Command line of the recipe: train the pair, grow it, train it on, measure it, or write a clip."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pvlm.config import bundled

from . import commands
from .world import MAX_SCENES


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="shapes", description=__doc__)
    names = parser.add_subparsers(required=True)

    train = names.add_parser("train", help="train target and draft from nothing")
    train.add_argument("--seconds", type=float, default=4200.0, help="wall-clock time for both stages")
    train.add_argument("--out", type=Path, required=True, help="folder for target/ and draft/")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--processes", type=int, default=1, help="train in several processes of one thread each")
    train.set_defaults(run=commands.train)

    grow = names.add_parser("grow", help="make a deeper checkpoint that gives the same answers")
    grow.add_argument("--model", type=Path, required=True, help="the checkpoint to grow")
    grow.add_argument("--layers", type=int, default=28)
    grow.add_argument("--seed", type=int, default=0)
    grow.add_argument("--out", type=Path, required=True, help="folder for the deeper checkpoint")
    grow.set_defaults(run=commands.grow)

    spread = names.add_parser("spread", help="give layers that were added a share of the first model's work")
    spread.add_argument("--model", type=Path, required=True, help="a grown checkpoint")
    spread.add_argument("--depths", type=int, nargs="+", required=True, help="its numbers of layers before each growth")
    spread.add_argument("--share", type=float, default=0.17, help="what each writes of what its source wrote")
    spread.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint")
    spread.set_defaults(run=commands.spread)

    go_on = names.add_parser("continue", help="train a checkpoint on; SIGTERM saves the state and stops")
    go_on.add_argument("--model", type=Path, help="the checkpoint to start from; not needed to resume")
    go_on.add_argument("--state", type=Path, required=True, help="folder of the state; resumed where one exists")
    go_on.add_argument("--steps", type=int, default=2000, help="steps in all, those before a stop included")
    go_on.add_argument("--hold", type=float, default=0.8, help="the rate falls to zero after this share of the steps")
    go_on.add_argument("--rate", type=float, default=1.2e-3, help="learning rate of Muon; that of AdamW is half of it")
    go_on.add_argument("--frames-weight", type=float, default=0.3, help="weight of the frame heads' loss")
    go_on.add_argument(
        "--scenes", nargs="+", default=["1:1", "2:2", "4:3", "8:4"], help="SCENES:WEIGHT of clip lengths"
    )
    go_on.add_argument("--seed", type=int, default=0)
    go_on.add_argument("--processes", type=int, default=1, help="train in several processes of one thread each")
    go_on.set_defaults(run=commands.continue_)

    evaluate = names.add_parser("evaluate", help="measure a pair on unseen mp4 clips")
    evaluate.add_argument("--target", default="bundled", help="a checkpoint; the default is the bundled one")
    evaluate.add_argument("--draft", type=Path, help="also report how often this draft agrees with the target")
    evaluate.add_argument("--clips", type=int, default=200)
    evaluate.add_argument("--scenes", type=int, nargs="+", default=[1, 2, 4, 8])
    evaluate.add_argument("--questions", type=int, default=4, help="questions for each clip")
    evaluate.add_argument("--seed", type=int, default=10**9)
    evaluate.add_argument("--json", type=Path, help="also write the figures to this file")
    evaluate.set_defaults(run=commands.evaluate)

    pruning = names.add_parser("pruning", help="which video tokens help a draft most")
    pruning.add_argument("--target", default=bundled("target"), help="a checkpoint; the default is the bundled one")
    pruning.add_argument("--draft", default=bundled("draft"), help="a checkpoint; the default is the bundled one")
    pruning.add_argument("--clips", type=int, default=40)
    pruning.add_argument("--seed", type=int, default=5000, help="of the first clip")
    pruning.add_argument("--choices", nargs="+", metavar="NAME", help="some of the table's rows; default: all")
    pruning.set_defaults(run=commands.pruning)

    clip = names.add_parser("clip", help="write one clip and print its questions and answers")
    clip.add_argument("--seed", type=int, default=0)
    clip.add_argument("--scenes", type=int, default=2, choices=range(1, MAX_SCENES + 1))
    clip.add_argument("--frames", type=int, help="6 to 10 for each scene")
    clip.add_argument("--size", type=int, default=224)
    clip.add_argument("--out", type=Path, required=True)
    clip.set_defaults(run=commands.clip)

    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.run(arguments)


if __name__ == "__main__":
    main()
