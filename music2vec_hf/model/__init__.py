"""What travels to the Hub: configuration, front end, encoder, masking, teacher, heads, feature extractor, pipeline."""
