"""Data: split lists and pairs, datasets and cached latents, augmentation."""
