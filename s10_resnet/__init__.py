"""Trains a custom ResNet-9 on CIFAR-10."""
