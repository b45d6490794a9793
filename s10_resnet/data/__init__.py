"""Images, augmentation and data loading."""
