"""The verbs of the `music2vec` command that make and search embeddings."""

import sys

DEVICES = ("auto", "cpu", "cuda", "mps")  # music2vec_hf.features.encoders'
PRECISIONS = ("fp32", "bf16", "fp16", "auto")  # music2vec_hf.common.precision's, which imports torch
TRUST_HELP = "run the Python code of a model repository that brings its own; read that code before"
PRECISION_HELP = "of the model; auto: bf16 where the hardware multiplies it (default: %(default)s)"


def add_embed_verbs(verb) -> None:
    """Declare `embed` and `similar`; `verb(function, help)` makes the parser of one."""
    command = verb(embed, "layer-wise embeddings of audio files and data sets; resumable")
    command.add_argument("model", metavar="MODEL", help="folder or Hub id of an audio model")
    command.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="audio files, folders, manifests, corpora, Parquet or Hub ids"
    )
    command.add_argument(
        "--output", required=True, help="file.parquet, file.npz, or DIR/ for one npz file a track, to write"
    )
    command.add_argument("--layers", default="all", help="all, or some of conv,0,1,... (default: %(default)s)")
    command.add_argument("--pool", default="mean", choices=("mean", "none"), help="per track or per frame")
    command.add_argument("--window-seconds", type=float, default=30.0, help="heard at once (default: %(default)s)")
    command.add_argument(
        "--overlap-seconds", type=float, default=0.0, help="shared by neighbouring windows (default: %(default)s)"
    )
    command.add_argument("--precision", default="fp32", choices=PRECISIONS, help=PRECISION_HELP)
    command.add_argument("--device", default="auto", choices=DEVICES, help="to compute on (default: %(default)s)")
    command.add_argument(
        "--compile", action="store_true", help="use torch.compile; worth its minute for hours of audio"
    )

    command.add_argument("--trust-remote-code", action="store_true", help=TRUST_HELP)

    command = verb(similar, "the tracks of a table of embeddings that are nearest to an audio file")
    command.add_argument("library", metavar="LIBRARY.parquet", help="what `music2vec embed` wrote, per track")
    command.add_argument("query", metavar="QUERY", help="audio file")
    command.add_argument("--top", type=int, default=10, help="how many (default: %(default)s)")
    command.add_argument("--layer", help="conv, 0, 1, ... (default: the last that LIBRARY has)")
    command.add_argument("--model", help="folder or Hub id, if LIBRARY does not say, or it has moved")
    command.add_argument("--device", default="auto", choices=DEVICES, help="to compute on (default: %(default)s)")
    command.add_argument("--trust-remote-code", action="store_true", help=TRUST_HELP)


def embed(args) -> None:
    """See [`music2vec_hf.features.tables.write_embeddings`]."""
    from music2vec_hf.features.tables import write_embeddings

    summary = write_embeddings(
        args.model,
        args.inputs,
        args.output,
        layer_list(args.layers),
        pool=args.pool,
        window_seconds=args.window_seconds,
        precision=args.precision,
        overlap_seconds=args.overlap_seconds,
        device=args.device,
        compile=args.compile,
        trust_remote_code=args.trust_remote_code,
    )
    reused = f" ({summary['reused']} of them by an earlier run)" if summary["reused"] else ""
    print(
        f"{args.output}: {summary['tracks']} tracks{reused}, layers {', '.join(summary['layers'])}, "
        f"{summary['hours']:.2f} h of audio; {len(summary['rejects'])} files could not be read"
    )
    for path, reason in summary["rejects"]:
        print(f"  left out: {path}: {reason}", file=sys.stderr)


def similar(args) -> None:
    """See [`music2vec_hf.features.similarity.find_similar`]."""
    from music2vec_hf.features.similarity import find_similar

    options = args.top, args.layer, args.model, args.device, args.trust_remote_code
    found = find_similar(args.library, args.query, *options)
    for path, cosine in found:
        print(f"{cosine:.4f}  {path}")


def layer_list(layers: str) -> list[str] | None:
    """The value of `--layers`: `None` for `all`."""
    return None if layers == "all" else [layer.strip() for layer in layers.split(",") if layer.strip()]


__all__ = ["DEVICES", "PRECISIONS", "PRECISION_HELP", "add_embed_verbs", "layer_list"]
