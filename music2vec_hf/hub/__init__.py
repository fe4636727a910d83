"""From and to other formats and the Hub: cards, push, plain export, fairseq, ONNX."""
