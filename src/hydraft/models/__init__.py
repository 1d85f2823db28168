"""Models: load (checkpoint or random weights, quantised or not), the embedded ``tiny``, and the families whose published
checkpoints are not native (chatglm2, baichuan; sentencepiece_bpe, published, mapping and shards are what they share)."""
