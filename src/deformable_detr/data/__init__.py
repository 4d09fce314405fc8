"""From files to batches: pictures, COCO annotations, augmentation, collation, loading, and generated scenes."""
