"""What training costs, beside a baseline script."""
