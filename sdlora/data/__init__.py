"""Images and captions: found, judged, bucketed, cached and put into batches."""
