"""From files to batches: images, augmentation, loader."""
