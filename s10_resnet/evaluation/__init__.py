"""What trained weights are asked for: metrics, views, predictions, heat maps."""
