"""Use of trained weights: metrics, test-time augmentation, predictions, heat maps."""
