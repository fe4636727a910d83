"""Layer-wise features of audio: one encoder, one window plan, one pass, one store."""
