"""From and to other formats and the Hub: cards, push, plain export, fairseq, ONNX."""


def __getattr__(name: str):
    """The two functions that version 0.1.0 had in a module of this name."""
    if name not in ("convert_fairseq_state_dict", "export_data2vec_audio"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from music2vec_hf.hub import conversion

    return getattr(conversion, name)
