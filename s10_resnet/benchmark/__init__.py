"""What a training costs, beside a plain script."""
