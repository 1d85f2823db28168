"""Training objectives: the records, the batches, the loss and the scores of each."""
