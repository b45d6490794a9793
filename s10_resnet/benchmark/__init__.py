"""What a training costs, beside a baseline script."""
