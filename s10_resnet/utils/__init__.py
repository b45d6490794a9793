"""What the other packages stand on: files, folders, signals, the terminal, the device."""
