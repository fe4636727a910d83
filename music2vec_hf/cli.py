"""The `music2vec` command: one thin function per verb, which gets the values of the arguments declared above it.

Work is done, and explained, in the modules that the verbs import when they run: help costs no import of torch.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from music2vec_hf.common.computing import DEVICES, PRECISIONS
from music2vec_hf.common.weights import model_source
from music2vec_hf.demo import BASELINES
from music2vec_hf.pretraining import REQUEUE_EXIT_CODE, TrainingInterrupted, TrainingStopped
from music2vec_hf.verbs import VERBS, arg, read_overrides, verb


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0; 1 for a mistake, which one sentence on stderr explains; 75 when a signal
    asked pretraining to stop and it has saved itself; 130 after Ctrl-C. argparse itself exits with 2."""
    parser = build_parser()
    args, more = parser.parse_known_args(argv)
    values = dict(vars(args))
    function = values.pop("verb")
    if function in (pretrain, distill, finetune):
        values["more"] = more
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    from huggingface_hub.errors import HTTPError

    try:
        function(**values)
    except (ValueError, OSError, HTTPError, TrainingStopped, TrainingInterrupted) as error:
        print(f"music2vec: {' '.join(str(error).split())}", file=sys.stderr)
        return REQUEUE_EXIT_CODE if isinstance(error, TrainingInterrupted) else 1
    except KeyboardInterrupt:
        print("music2vec: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their arguments; the help of a verb is its function's docstring."""
    parser = argparse.ArgumentParser(prog="music2vec", description="Self-supervised music representation learning.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for function, arguments in VERBS:
        summary, _, details = function.__doc__.partition("\n\n")
        command = verbs.add_parser(function.__name__, help=summary, description=summary, epilog=details.strip())
        command.set_defaults(verb=function)
        for add in arguments:
            add(command)
    return parser


def _layers(text: str) -> list[str] | None:
    return None if text == "all" else [layer.strip() for layer in text.split(",") if layer.strip()]


_NUM_PROC = arg("--num-proc", "processes", default=os.cpu_count() or 1)
_RUN = (
    arg("--corpus", "prepared corpus, other audio or Hub id", required=True),
    arg("--output", "folder of the run", required=True),
    arg("--resume", "go on from the last checkpoint in --output", action="store_true"),
)
_DEVICE = arg("--device", "to compute on", default="auto", choices=DEVICES)
_PRECISION = arg("--precision", "auto: bf16 where that is faster", default="fp32", choices=PRECISIONS)
_TRUST = arg("--trust-remote-code", "run the Python code that MODEL's repository brings", action="store_true")


@verb(
    arg("--output", "folder for everything it makes", default="demo"),
    arg("--seed", "seed of the pretraining", default=1),
)
def demo(output, seed) -> None:
    """Synthesise, pretrain a tiny model, probe four tasks and report; offline, minutes on two cores."""
    from music2vec_hf.demo import run_demo

    run_demo(output, seed)


@verb(
    arg("OUT", "new folder"),
    arg("--clips", "number of clips", type=int, required=True),
    arg("--seed", "equal seeds give equal bytes", type=int, required=True),
    arg("--clip-seconds", "length of a clip", default=10.0),
    _NUM_PROC,
)
def synth(out, clips, seed, clip_seconds, num_proc) -> None:
    """Make a labelled synthetic corpus."""
    from music2vec_hf.synthetic.generator import synthesize_corpus

    summary = synthesize_corpus(out, clips, seed, clip_seconds, num_proc)
    splits = ", ".join(f"{count} {split}" for split, count in summary["splits"].items())
    print(f"{out}: {summary['num_clips']} synthetic clips of {summary['clip_seconds']:g} s ({splits})")


@verb(
    arg("SOURCE", "folder; CSV, TSV or JSONL manifest; Parquet or .tar files; or Hub id"),
    arg("OUT", "folder of the corpus"),
    arg("--clip-seconds", "length of a clip", default=30.0),
    arg("--min-seconds", "shortest clip kept", default=2.0),
    _NUM_PROC,
    arg("--engine", "ray: RAY_ADDRESS's cluster", default="processes", choices=("processes", "ray")),
    arg("--file-timeout", "seconds; a file that takes longer, 50 kB/s granted, is rejected; 0: never", default=600.0),
    arg("--hours", "take tracks, or whole artists, at random until they last so long", type=float),
    arg("--seed", "of --hours (default: 0)", type=int),
    arg("--shard", "part i of n, i from 0 on: --array=0-3 and $SLURM_ARRAY_TASK_ID/4; then merge", metavar="i/n"),
    arg("--store", "wav needs no decoding; pcm is its older name", default="flac", choices=("flac", "wav", "pcm")),
    arg("--push-to-hub --push_to_hub", "then upload the corpus to this data set, user/name", metavar="REPO_ID"),
    arg("--private", "if --push-to-hub makes the data set, make it private", action="store_true"),
)
def prepare(source, out, shard, store, push_to_hub, private, **settings) -> None:
    """Turn a folder of audio, a manifest or a data set into a corpus; resumable."""
    from music2vec_hf.corpus.prepare import parse_shard, prepare_corpus
    from music2vec_hf.corpus.publishing import push_corpus

    settings["shard"] = None if shard is None else parse_shard(shard)
    settings["store"] = "wav" if store == "pcm" else store
    summary = prepare_corpus(source, out, **settings)
    if "part" in summary:
        print(
            f"{out}: part {summary['part']}/{summary['parts']}: {summary['hours']:.2f} h of audio of "
            f"{summary['tracks']} tracks, {summary['rejected_files']} rejected; when all parts are there: "
            f"music2vec merge {out}"
        )
        return
    _print_corpus(out, summary)
    if store == "pcm":
        pcm(out)
    if push_to_hub:
        print(push_corpus(out, push_to_hub, private))


@verb(arg("OUT", "folder of the corpus"))
def merge(out) -> None:
    """Join the parts that `prepare SOURCE OUT --shard i/n` made to one corpus, if all are there."""
    from music2vec_hf.corpus.prepare import merge_corpus

    _print_corpus(out, merge_corpus(out))


def _print_corpus(out: str, summary: dict) -> None:
    print(
        f"{out}: {summary['hours']:.2f} h of audio in {summary['clips']} clips of {summary['tracks']} tracks; "
        f"{sum(summary['rejects'].values())} rejected (see {os.path.join(out, 'rejects.csv')})"
    )


@verb(arg("CORPUS", "folder that `music2vec prepare` made"))
def pcm(corpus) -> None:
    """Store a corpus as wav, for training where decoding is the limit; 115 GB for 1,000 hours."""
    from music2vec_hf.corpus.clips import convert_to_wav

    found = convert_to_wav(corpus)
    print(f"{corpus}: {found['clips']} clips, {found['bytes'] / 1e9:.2f} GB; {len(found['failed'])} cannot be decoded")


@verb(
    arg("CORPUS", "folder that `music2vec prepare` made, or Hub id"),
    arg("--output", "page to write", default="inspection.html"),
    arg("--seed", "draws the ten clips", default=0),
)
def inspect(corpus, output, seed) -> None:
    """Print what a corpus holds; write a page with histograms and ten clips to see and hear."""
    from music2vec_hf.corpus.inspection import format_summary, inspect_corpus, write_page

    inspection = inspect_corpus(corpus)
    print(format_summary(inspection), write_page(inspection, output, seed), sep="\n")


@verb(arg("NAME", "recipe to print", nargs="?"))
def recipes(name) -> None:
    """List the pretraining recipes, or print one with every value resolved."""
    from music2vec_hf.pretraining.arguments import load_recipe, recipe_names, recipe_title

    titles = "".join(f"{each:<16} {recipe_title(each)}\n" for each in recipe_names())
    print(load_recipe(name).to_yaml() if name else titles, end="")


@verb(arg("--recipe", "name, or YAML file of differences", default="crop5s"), *_RUN)
def pretrain(recipe, corpus, output, resume, more) -> None:
    """Pretrain a model; run it as `accelerate launch -m music2vec_hf pretrain ...`.

    Any value of the recipe can be given as --key value; `music2vec recipes NAME` shows them.
    """
    from music2vec_hf.pretraining.arguments import load_recipe
    from music2vec_hf.pretraining.loop import pretrain

    pretrain(load_recipe(recipe, **read_overrides(more)), corpus, output, resume)


@verb(
    arg("MODEL", "the teacher: tiny, or folder or Hub id of any audio encoder", type=model_source),
    arg("--recipe", "the student: name, or YAML file of differences", default="small"),
    *_RUN,
    _TRUST,
)
def distill(model, recipe, corpus, output, resume, trust_remote_code, more) -> None:
    """Teach a small model the layers of a larger one; run it as `accelerate launch -m music2vec_hf distill ...`.

    Any value of the recipe can be given as --key value; those that begin with distill_ say what is learned.
    """
    from music2vec_hf.pretraining.arguments import load_recipe
    from music2vec_hf.pretraining.loop import pretrain

    values = {"distill_trust_remote_code": trust_remote_code, **read_overrides(more), "distill_from": model}
    pretrain(load_recipe(recipe, **values), corpus, output, resume)


@verb(arg("CONFIG.yaml", "settings, one `key: value` per line", dest="config"))
def finetune(config, more) -> None:
    """Fine-tune a model as a YAML file says: frozen, LoRA, last layers or full.

    Any value of CONFIG.yaml can be given after it as --key value.
    """
    from music2vec_hf.finetuning.fitting import finetune_from_yaml

    if not config.endswith((".yaml", ".yml")):
        raise ValueError(f"{config!r} is no .yaml file. Write `music2vec finetune CONFIG.yaml [--key value ...]`.")
    if not os.path.isfile(config):
        lines = "`model: tiny`, `corpus: FOLDER`, `label: COLUMN`, `output_dir: OUT`"
        raise ValueError(f"There is no {config}. Write it, one line each: {lines}.")
    print(finetune_from_yaml([config, *more]))


@verb(
    arg("MODEL", "tiny, or folder or Hub id of an audio model", type=model_source),
    arg("INPUT", "audio files, folders, manifests, corpora, Parquet or Hub ids", nargs="+", dest="inputs"),
    arg("--output", "file.parquet, file.npz, or DIR/ for one npz file a track, to write", required=True),
    arg("--layers", "all, or some of conv,0,1,...", type=_layers, default="all"),
    arg("--pool", "per track or per frame", default="mean", choices=("mean", "none")),
    arg("--window-seconds", "heard at once", default=30.0),
    arg("--overlap-seconds", "shared by neighbouring windows", default=0.0),
    _PRECISION,
    _DEVICE,
    arg("--compile", "use torch.compile; worth its minute for hours of audio", action="store_true"),
    _TRUST,
)
def embed(model, inputs, output, **settings) -> None:
    """Layer-wise embeddings of audio files and data sets; resumable."""
    from music2vec_hf.features.tables import write_embeddings

    summary = write_embeddings(model, inputs, output, **settings)
    reused = f" ({summary['reused']} of them by an earlier run)" if summary["reused"] else ""
    print(
        f"{output}: {summary['tracks']} tracks{reused}, layers {', '.join(summary['layers'])}, "
        f"{summary['hours']:.2f} h; {len(summary['truncated'])} truncated, {len(summary['rejects'])} could not be read"
    )
    _print_rejects(summary["truncated"], "truncated")
    _print_rejects(summary["rejects"])


def _print_rejects(rejects, what: str = "left out") -> None:
    for path, reason in rejects:
        print(f"  {what}: {path}: {reason}", file=sys.stderr)


@verb(
    arg("LIBRARY.parquet", "what `music2vec embed` wrote, per track", dest="library"),
    arg("QUERY", "audio file"),
    arg("--top", "how many", default=10),
    arg("--layer", "conv, 0, 1, ... (default: the last that LIBRARY has)"),
    arg("--model", "tiny, or folder or Hub id, if LIBRARY does not say, or it has moved"),
    _DEVICE,
    _TRUST,
)
def similar(library, query, **settings) -> None:
    """The tracks of a table of embeddings that are nearest to an audio file."""
    from music2vec_hf.features.tables import find_similar

    for path, cosine in find_similar(library, query, **settings):
        print(f"{cosine:.4f}  {path}")


@verb(
    arg("MODEL", "tiny, or folder or Hub id of an audio model, with a head or without", type=model_source),
    arg("--library", "what `music2vec embed` wrote, per track: where similar tracks are", metavar="F.parquet"),
    arg("--layer", "conv, 0, 1, ... for similar tracks and changes (default: the last)"),
    arg("--window-seconds", "of labels over time (default: the model's own windows)", type=float),
    arg("--host", "address to listen on; 0.0.0.0: all", default="127.0.0.1"),
    arg("--port", "to listen on (default: the first that is free from 7860 on)", type=int),
    arg("--max-megabytes", "largest file taken", default=200.0),
    arg("--max-minutes", "longest song taken", default=20.0),
    arg("--max-waiting", "songs that may wait while others are heard", default=20),
    _DEVICE,
    _TRUST,
)
def app(model, library, host, port, max_megabytes, max_minutes, max_waiting, **settings) -> None:
    """A page that hears a song: labels over time, similar tracks, where it changes; offline."""
    from music2vec_hf.app import serve
    from music2vec_hf.app_listener import Limits, Listener

    serve(Listener(model, library, Limits(max_megabytes, max_minutes, max_waiting), **settings), host, port)


@verb(
    arg("MODEL", "tiny, or folder or Hub id of any audio encoder", type=model_source),
    arg("--task", "a task or group, for example synthetic or synthetic-genre", required=True),
    arg("--data", "folder of the task's data", required=True),
    arg("--output", "folder for results.json, predictions and the cache", required=True),
    arg("--layers", "some of conv,0,1,..., or pilot: the one that quick chooses", type=_layers, default="all"),
    arg("--export", "write MODEL with the task's probe; of several DIR/TASK", metavar="DIR"),
    arg("--search", "quick, marble or jukemir", default="quick"),
    arg("--seeds", "of the chosen probe", type=int, nargs="+", default=[0, 1, 2]),
    arg("--random-init-seed", "of the random weights", default=0),
    _PRECISION,
    arg("--device", "of model and probes", default="auto", choices=DEVICES[:3]),
    _TRUST,
    arg("--allow-missing", "leave out what is missing or cannot be opened; not comparable", action="store_true"),
    arg("--baselines", "(default: the first three)", nargs="*", choices=BASELINES, default=BASELINES[:3]),
)
def probe(model, task, data, output, baselines, layers, device, **settings) -> None:
    """Probe a model on a task, beside random weights, spectral features and chance."""
    from music2vec_hf.common.files import read_results
    from music2vec_hf.features.encoders import choose_device
    from music2vec_hf.probing.report_tables import format_table, notices
    from music2vec_hf.probing.suite import run_suite

    layers = "pilot" if layers == ["pilot"] else layers
    device = str(choose_device(device, DEVICES[:3]))
    path = run_suite([model, *baselines], task, data, output, layers=layers, device=device, **settings)
    results = read_results(path)
    print(format_table(results), *notices(results), path, sep="\n")


@verb(
    arg("RESULTS", "results.json files, pretraining runs, folders of either; or tiny", nargs="+", type=model_source),
    arg("--output", "folder of report.html", required=True),
    arg("--watch", "write it again every WATCH seconds until runs are over (60)", nargs="?", const=60.0, type=float),
)
def report(results, output, watch) -> None:
    """Table, figures and HTML page from results and pretraining runs, also while a run goes on."""
    from music2vec_hf.probing.report import write_report
    from music2vec_hf.probing.watching import watch_runs

    for line in [write_report(results, output)] if watch is None else watch_runs(results, output, watch):
        print(line, flush=True)


@verb(arg("CKPT.pt", "fairseq's file; it is read, never run", dest="checkpoint"), arg("OUT", "new folder"))
def convert(checkpoint, out) -> None:
    """Turn a fairseq data2vec-audio checkpoint into a model to resume, use or release."""
    from music2vec_hf.hub.conversion import convert_fairseq_checkpoint

    print(convert_fairseq_checkpoint(checkpoint, out))


@verb(
    arg("MODEL", "tiny, or folder or Hub id", type=model_source),
    arg("OUT", "new folder"),
    arg("--format", "to write", default="data2vec-audio", choices=("data2vec-audio", "onnx")),
    arg("--quantize", "of ONNX: write a file with 8-bit weights, too", choices=("int8",)),
    arg("--samples", "audio to measure the cost of int8 on (default: synthetic clips)", metavar="FOLDER"),
)
def export(model, out, format, quantize, samples) -> None:
    """Write a model so that plain transformers loads it, or as ONNX."""
    if format != "onnx":
        from music2vec_hf.hub.conversion import export_data2vec_audio

        if quantize or samples:
            raise ValueError("`--quantize` and `--samples` are of ONNX. Give `--format onnx`, or leave them out.")
        print(export_data2vec_audio(model, out))
        return
    from music2vec_hf.hub.onnx_export import export_onnx

    made = export_onnx(model, out, quantize, samples)
    print(f"{made.folder}: {made.head or 'encoder, without a head'}; outputs {', '.join(made.outputs)}")
    print(f"largest difference from torch: {made.difference:.1e} of the largest value of an output")
    for name, size in made.bytes.items():
        print(f"{name}: {size / 1e6:.1f} MB")
    if made.int8:
        print(f"int8: {made.int8.sentence()}")
        _print_rejects(made.int8.rejects)


@verb(
    arg("DIR", "run that is finished, checkpoint, or other model folder", dest="folder"),
    arg("REPO_ID", "user/name; made if it is not there"),
    arg("--license", "of the weights, as the Hub names it, such as cc-by-4.0", metavar="ID"),
    arg("--private", "if it makes the repository, make it private", action="store_true"),
    arg("--revision", "branch to write to; made if it is not there", metavar="BRANCH"),
    arg("--results", "results.json files (default: those below and beside DIR)", nargs="+", metavar="PATH"),
    arg("--dry-run", "list files and print the card only; or write all to OUT", nargs="?", const="", metavar="OUT"),
)
def push(folder, repo_id, license, private, revision, results, dry_run) -> None:
    """Upload a model with a generated card, so that it loads without this library, too."""
    from music2vec_hf.hub.push import make_publication, push_model
    from music2vec_hf.probing.report import draw_all

    publication = make_publication(folder, repo_id, license, results, revision, draw_all)
    for name, size in publication.sizes.items():
        print(f"{size:>13,} bytes  {name}")
    if publication.left_out:
        print(f"not uploaded: {', '.join(publication.left_out)}")
    if dry_run is None:
        print(push_model(publication, repo_id, private, revision))
    else:
        print(publication.write(dry_run) if dry_run else f"\n{publication.files['README.md'].decode().rstrip()}")
