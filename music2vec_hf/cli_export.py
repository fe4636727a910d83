"""The verbs of the `music2vec` command that turn weights from and for elsewhere."""

import sys


def add_export_verbs(verb) -> None:
    """Declare `convert` and `export`; `verb(function, help)` makes the parser of one."""
    command = verb(convert, "turn a fairseq data2vec-audio checkpoint into a model to resume, use or release")
    command.add_argument("checkpoint", metavar="CKPT.pt", help="fairseq's file; it is read, never run")
    command.add_argument("out", metavar="OUT", help="new folder")

    command = verb(export, "write a model so that plain transformers loads it, or as ONNX")
    command.add_argument("model", metavar="MODEL", help="folder or Hub id")
    command.add_argument("out", metavar="OUT", help="new folder")
    command.add_argument(
        "--format", default="data2vec-audio", choices=("data2vec-audio", "onnx"), help="default: %(default)s"
    )
    command.add_argument("--quantize", choices=("int8",), help="of ONNX: write a file with 8-bit weights, too")
    command.add_argument(
        "--samples", metavar="FOLDER", help="audio to measure the cost of int8 on (default: synthetic clips)"
    )


def convert(args) -> None:
    """See [`music2vec_hf.hub.conversion.convert_fairseq_checkpoint`]."""
    from music2vec_hf.hub.conversion import convert_fairseq_checkpoint

    print(convert_fairseq_checkpoint(args.checkpoint, args.out))


def export(args) -> None:
    """See [`music2vec_hf.hub.conversion.export_data2vec_audio`] and [`music2vec_hf.hub.onnx_export.export_onnx`]."""
    if args.format == "onnx":
        _export_onnx(args)
        return
    if args.quantize or args.samples:
        raise ValueError("`--quantize` and `--samples` are of ONNX. Give `--format onnx`, or leave them out.")
    from music2vec_hf.hub.conversion import export_data2vec_audio

    print(export_data2vec_audio(args.model, args.out))


def _export_onnx(args) -> None:
    from music2vec_hf.hub.onnx_export import export_onnx

    made = export_onnx(args.model, args.out, args.quantize, args.samples)
    print(f"{made.folder}: {made.head or 'encoder, without a head'}; outputs {', '.join(made.outputs)}")
    print(f"largest difference from torch: {made.difference:.1e} of the largest value of an output")
    for name, size in made.bytes.items():
        print(f"{name}: {size / 1e6:.1f} MB")
    if made.int8:
        print(f"int8: {made.int8.sentence()}")
        for path, reason in made.int8.rejects:
            print(f"  left out: {path}: {reason}", file=sys.stderr)


__all__ = ["add_export_verbs"]
