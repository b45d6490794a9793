"""The network, its initialization, loading of trained weights, and export."""
