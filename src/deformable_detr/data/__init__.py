"""From files to batches: images, COCO annotations, augmentation, collation, loading, and generated scenes."""
