"""Images with boxes: readers of the common layouts, the check before training, transforms and batches."""
