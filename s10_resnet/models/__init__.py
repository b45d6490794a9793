"""The network: its layers, its first weights, its ways to a file and back."""
