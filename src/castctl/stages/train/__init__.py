"""Training: shaped shards in, better weights out. Nothing here asks which method made a stream."""
