"""The `music2vec` command: one thin function per verb. Work is done, and explained, in the modules that they call."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from music2vec_hf.cli_embeddings import PRECISION_HELP, PRECISIONS, add_embed_verbs, layer_list
from music2vec_hf.cli_export import add_export_verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; a user's mistake ends it with one sentence on stderr and exit code 1.

    Args:
        argv (`Sequence[str]`, *optional*): by default the process' arguments.

    Returns:
        `int`: exit code: 0, 1 for a mistake that the message explains, 75 when a signal asked pretraining to stop
            and it has saved itself, 130 after Ctrl-C. argparse itself exits with 2.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.verb is not pretrain:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from huggingface_hub.errors import HTTPError

    from music2vec_hf.pretraining.monitors import TrainingStopped
    from music2vec_hf.pretraining.signals import REQUEUE_EXIT_CODE, TrainingInterrupted

    try:
        args.verb(args, rest) if args.verb is pretrain else args.verb(args)
    except (ValueError, OSError, HTTPError, TrainingStopped) as error:
        print(f"music2vec: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except TrainingInterrupted as stop:
        print(f"music2vec: {stop}", file=sys.stderr)
        return REQUEUE_EXIT_CODE
    except KeyboardInterrupt:
        print("music2vec: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their arguments."""
    parser = argparse.ArgumentParser(prog="music2vec", description="Self-supervised music representation learning.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    cores = os.cpu_count() or 1

    def verb(function, help_text):
        command = verbs.add_parser(function.__name__, help=help_text, description=f"{help_text}.")
        command.set_defaults(verb=function)
        return command

    command = verb(demo, "synthesise, pretrain tiny, probe four tasks and report; offline, minutes on two cores")
    command.add_argument("--output", default="demo", help="folder for everything it makes (default: %(default)s)")
    command.add_argument("--seed", type=int, default=1, help="seed of the pretraining (default: %(default)s)")

    command = verb(synth, "make a labelled synthetic corpus")
    command.add_argument("out", metavar="OUT", help="new folder")
    command.add_argument("--clips", type=int, required=True, help="number of clips")
    command.add_argument("--seed", type=int, required=True, help="equal seeds give equal bytes")
    command.add_argument("--clip-seconds", type=float, default=10.0, help="length of a clip (default: %(default)s)")
    command.add_argument("--num-proc", type=int, default=cores, help="processes (default: %(default)s)")

    _add_prepare(verb, cores)

    command = verb(merge, "join the parts that `prepare SOURCE OUT --shard i/n` made to one corpus, if all are there")
    command.add_argument("out", metavar="OUT", help="folder of the corpus")

    command = verb(pcm, "store a corpus as wav, for training where decoding is the limit; 115 GB for 1,000 hours")
    command.add_argument("corpus", metavar="CORPUS", help="folder that `music2vec prepare` made")

    command = verb(inspect, "print what a corpus holds; write a page with histograms and ten clips to see and hear")
    command.add_argument("corpus", metavar="CORPUS", help="folder that `music2vec prepare` made, or Hub id")
    command.add_argument("--output", default="inspection.html", help="page to write (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="draws the ten clips (default: %(default)s)")

    command = verb(recipes, "list the pretraining recipes, or print one with every value resolved")
    command.add_argument("name", metavar="NAME", nargs="?", help="recipe to print")

    command = verb(pretrain, "pretrain a model; run it as `accelerate launch -m music2vec_hf pretrain ...`")
    command.add_argument("--recipe", default="crop5s", help="name, or YAML file of differences (default: %(default)s)")
    command.add_argument("--corpus", required=True, help="prepared corpus, other audio or Hub id")
    command.add_argument("--output", required=True, help="folder of the run")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    command.epilog = "Any value of the recipe can be given as --key value; `music2vec recipes NAME` shows them."

    _add_model_verbs(verb)
    return parser


def _add_prepare(verb, cores: int) -> None:
    command = verb(prepare, "turn a folder of audio, a manifest or a data set into a corpus; resumable")
    command.add_argument(
        "source", metavar="SOURCE", help="folder; CSV, TSV or JSONL manifest; Parquet or .tar files; or Hub id"
    )
    command.add_argument("out", metavar="OUT", help="folder of the corpus")
    command.add_argument("--clip-seconds", type=float, default=30.0, help="length of a clip (default: %(default)s)")
    command.add_argument("--min-seconds", type=float, default=2.0, help="shortest clip kept (default: %(default)s)")
    command.add_argument("--num-proc", type=int, default=cores, help="processes (default: %(default)s)")
    command.add_argument(
        "--engine",
        default="processes",
        choices=("processes", "ray"),
        help="ray: RAY_ADDRESS's cluster (default: %(default)s)",
    )
    command.add_argument(
        "--file-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="reject a file that takes longer, 50 kB/s granted; 0: never (default: %(default)s)",
    )
    command.add_argument(
        "--hours", type=float, help="take tracks, or whole artists, at random until they last so long"
    )
    command.add_argument("--seed", type=int, help="of --hours (default: 0)")
    command.add_argument(
        "--shard",
        metavar="i/n",
        help="part i of n, i from 0 on: --array=0-3 and --shard $SLURM_ARRAY_TASK_ID/4; then merge",
    )
    command.add_argument(
        "--store",
        default="flac",
        choices=("flac", "wav", "pcm"),
        help="wav: read without decoding, twice the size; pcm is its older name (default: %(default)s)",
    )
    command.add_argument(
        *("--push-to-hub", "--push_to_hub"),
        metavar="REPO_ID",
        help="then upload the corpus to this data set, user/name",
    )
    command.add_argument("--private", action="store_true", help="if --push-to-hub makes the data set, make it private")


def _add_model_verbs(verb) -> None:
    """The verbs that start from a model or its results."""
    add_embed_verbs(verb)

    _add_probe(verb)

    command = verb(report, "table, figures and HTML page from results and pretraining runs")
    command.add_argument(
        "results", metavar="RESULTS", nargs="+", help="results.json files, pretraining runs, or folders of either"
    )
    command.add_argument("--output", required=True, help="folder of report.html")

    add_export_verbs(verb)

    command = verb(push, "upload a model with a generated card, so that it loads without this library, too")
    command.add_argument("folder", metavar="DIR", help="run that is finished, checkpoint, or other model folder")
    command.add_argument("repo_id", metavar="REPO_ID", help="user/name; made if it is not there")
    command.add_argument("--license", metavar="ID", help="of the weights, as the Hub names it, such as cc-by-4.0")
    command.add_argument("--private", action="store_true", help="if it makes the repository, make it private")
    command.add_argument("--revision", metavar="BRANCH", help="branch to write to; made if it is not there")
    command.add_argument(
        "--results", nargs="+", metavar="PATH", help="results.json files (default: those below and beside DIR)"
    )
    command.add_argument(
        "--dry-run",
        nargs="?",
        const="",
        metavar="OUT",
        help="upload nothing: list the files and print the card, or write all to the new folder OUT",
    )


def _add_probe(verb) -> None:
    command = verb(probe, "probe a model on a task, beside random weights, spectral features and chance")
    command.add_argument("model", metavar="MODEL", help="folder or Hub id of any audio encoder")
    command.add_argument("--task", required=True, help="a task or group, for example synthetic or synthetic-genre")
    command.add_argument("--data", required=True, help="folder of the task's data")
    command.add_argument("--output", required=True, help="folder for results.json, predictions and the cache")
    command.add_argument("--layers", default="all", help="some of conv,0,1,..., or pilot: the one that quick chooses")
    command.add_argument("--export", metavar="DIR", help="write MODEL with the task's probe; of several DIR/TASK")
    command.add_argument("--search", default="quick", help="quick, marble or jukemir (default: %(default)s)")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the chosen probe")
    command.add_argument("--random-init-seed", type=int, default=0, help="of the random weights (default: 0)")
    command.add_argument("--precision", default="fp32", choices=PRECISIONS, help=PRECISION_HELP)
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of model and probes (default: cpu)")
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that MODEL's repository brings"
    )
    command.add_argument(
        "--allow-missing", action="store_true", help="leave out tracks without usable audio; not comparable then"
    )
    command.add_argument(
        "--baselines",
        nargs="*",
        choices=("random-init", "mfcc", "chroma", "mel"),
        default=["random-init", "mfcc", "chroma"],
        help="(default: the first three)",
    )


def demo(args) -> None:
    """See [`music2vec_hf.demo.run_demo`]."""
    from music2vec_hf.demo import run_demo

    run_demo(args.output, args.seed)


def synth(args) -> None:
    """See [`music2vec_hf.synthetic.generator.synthesize_corpus`]."""
    from music2vec_hf.synthetic.generator import synthesize_corpus

    summary = synthesize_corpus(args.out, args.clips, args.seed, args.clip_seconds, args.num_proc)
    splits = ", ".join(f"{count} {split}" for split, count in summary["splits"].items())
    print(f"{args.out}: {summary['num_clips']} synthetic clips of {summary['clip_seconds']:g} s ({splits})")


def prepare(args) -> None:
    """See [`music2vec_hf.corpus.prepare.prepare_corpus`]."""
    from music2vec_hf.corpus.prepare import parse_shard, prepare_corpus
    from music2vec_hf.corpus.publishing import push_corpus

    summary = prepare_corpus(
        args.source,
        args.out,
        args.clip_seconds,
        args.min_seconds,
        args.num_proc,
        hours=args.hours,
        seed=args.seed,
        shard=None if args.shard is None else parse_shard(args.shard),
        engine=args.engine,
        file_timeout=args.file_timeout,
        store="wav" if args.store == "pcm" else args.store,
    )
    if "part" not in summary:
        _print_corpus(args.out, summary)
        if args.store == "pcm":
            _store_as_wav(args.out)
        if args.push_to_hub:
            print(push_corpus(args.out, args.push_to_hub, args.private))
        return
    print(
        f"{args.out}: part {summary['part']}/{summary['parts']}: {summary['hours']:.2f} h of audio of "
        f"{summary['tracks']} tracks, {summary['rejected_files']} rejected; when all parts are there: "
        f"music2vec merge {args.out}"
    )


def merge(args) -> None:
    """See [`music2vec_hf.corpus.prepare.merge_corpus`]."""
    from music2vec_hf.corpus.prepare import merge_corpus

    _print_corpus(args.out, merge_corpus(args.out))


def _print_corpus(out: str, summary: dict) -> None:
    print(
        f"{out}: {summary['hours']:.2f} h of audio in {summary['clips']} clips of {summary['tracks']} tracks; "
        f"{sum(summary['rejects'].values())} rejected (see {Path(out) / 'rejects.csv'})"
    )


def pcm(args) -> None:
    """See [`music2vec_hf.corpus.converting.convert_to_wav`]."""
    _store_as_wav(args.corpus)


def _store_as_wav(corpus: str) -> None:
    from music2vec_hf.corpus.converting import convert_to_wav

    found = convert_to_wav(corpus)
    print(f"{corpus}: {found['clips']} clips, {found['bytes'] / 1e9:.2f} GB; {len(found['failed'])} cannot be decoded")


def inspect(args) -> None:
    """See [`music2vec_hf.corpus.inspection.inspect_corpus`] and [`music2vec_hf.corpus.inspection_page.write_page`]."""
    from music2vec_hf.corpus.inspection import format_summary, inspect_corpus
    from music2vec_hf.corpus.inspection_page import write_page

    inspection = inspect_corpus(args.corpus)
    print(format_summary(inspection))
    print(write_page(inspection, args.output, args.seed))


def recipes(args) -> None:
    """See [`music2vec_hf.pretraining.arguments.load_recipe`]."""
    from music2vec_hf.pretraining.arguments import load_recipe, recipe_names, recipe_title

    if args.name:
        print(yaml.safe_dump(asdict(load_recipe(args.name)), sort_keys=False, default_flow_style=None), end="")
        return
    for name in recipe_names():
        print(f"{name:<16} {recipe_title(name)}")


def pretrain(args, rest: Sequence[str]) -> None:
    """See [`music2vec_hf.pretraining.loop.pretrain`]."""
    from music2vec_hf.pretraining.arguments import load_recipe
    from music2vec_hf.pretraining.loop import pretrain

    pretrain(load_recipe(args.recipe, **read_overrides(rest)), args.corpus, args.output, args.resume)


def read_overrides(arguments: Sequence[str]) -> dict:
    """`--key value`, `--key=value` or `--key v1 v2 ...` -> values as YAML reads them; `--key` alone is true.

    Raises:
        ValueError: for a word that follows no key.
    """
    found: dict[str, list] = {}
    key = None
    for word in arguments:
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            key = key.replace("-", "_")
            found[key] = [value] if value else []
        elif key is None:
            raise ValueError(f"{word!r} follows no `--key`. Write recipe values as `--key value`.")
        else:
            found[key].append(word)
    values = {key: [yaml.safe_load(word) for word in words] for key, words in found.items()}
    return {key: words[0] if len(words) == 1 else words or True for key, words in values.items()}


def probe(args) -> None:
    """See [`music2vec_hf.probing.suite.run_suite`]."""
    from music2vec_hf.common.results import read_results
    from music2vec_hf.features.encoders import choose_device
    from music2vec_hf.probing.report_tables import format_table, notices
    from music2vec_hf.probing.suite import run_suite

    results = run_suite(
        [args.model, *args.baselines],
        args.task,
        args.data,
        args.output,
        search=args.search,
        seeds=args.seeds,
        layers="pilot" if args.layers == "pilot" else layer_list(args.layers),
        random_init_seed=args.random_init_seed,
        precision=args.precision,
        device=str(choose_device(args.device)),
        allow_missing=args.allow_missing,
        trust_remote_code=args.trust_remote_code,
        export=args.export,
    )
    written = read_results(results)
    print("\n".join([format_table(written), *notices(written), str(results)]))


def report(args) -> None:
    """See [`music2vec_hf.probing.report.write_report`]."""
    from music2vec_hf.probing.report import write_report

    print(write_report(args.results, args.output))


def push(args) -> None:
    """See [`music2vec_hf.hub.push.make_publication`] and [`music2vec_hf.hub.push.push_model`]."""
    from music2vec_hf.hub.push import make_publication, push_model

    publication = make_publication(args.folder, args.repo_id, args.license, args.results, args.revision)
    for name, size in publication.sizes.items():
        print(f"{size:>13,} bytes  {name}")
    if publication.left_out:
        print(f"not uploaded: {', '.join(publication.left_out)}")
    if args.dry_run is None:
        print(push_model(publication, args.repo_id, args.private, args.revision))
    elif args.dry_run:
        print(publication.write(args.dry_run))
    else:
        print(f"\n{publication.files['README.md'].decode()}", end="")


__all__ = ["build_parser", "main", "read_overrides"]
